"""Numbers that stand for those of variables of which only shapes are known; nothing is run or compiled.

They differ wherever the real ones can, and are equal where an equation spreads one number over positions: a constant
that is one number per channel is one here too, and one that is not is not.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from leanax import graph
from leanax.graph.program import Node

STEPS = (0.6180339887498949, 0.7548776662466927)  # irrational: fractions of their multiples lie far apart


def distinct(shape: tuple[int, ...], dtype: Any, number: int = 0) -> np.ndarray:
  """Returns numbers from 0.5 to 2, of floats no two of a few thousand alike, and others for each `number`."""
  if not np.issubdtype(dtype, np.floating):
    return np.ones(shape, dtype)
  places = np.arange(math.prod(shape), dtype=np.float64)
  return (0.5 + 1.5 * ((places * STEPS[0] + number * STEPS[1]) % 1)).astype(dtype).reshape(shape)


def stand_in(
  traced: graph.Graph, producer: Mapping[int, Node], ref: Any, real: Callable[[Any], np.ndarray]
) -> np.ndarray:
  """Returns an array in place of a value that is made of variables alone.

  Args:
    traced: the function.
    producer: the equation of each value.
    ref: the value.
    real: gives values that no variable has a part in.
  """
  ref = traced.resolve(ref)
  if not traced.analysis.value(ref).leaves:
    return np.asarray(real(ref))
  aval, node = traced.program.avals[ref], producer.get(ref)
  if node is None:
    return distinct(aval.shape, aval.dtype, ref)
  reads = [one for one in node.inputs if traced.analysis.value(one).leaves]
  first = stand_in(traced, producer, reads[0], real)
  if node.primitive == "broadcast_in_dim":
    axes = node.params["broadcast_dimensions"]
    first = first.reshape([first.shape[axes.index(axis)] if axis in axes else 1 for axis in range(len(aval.shape))])
  elif node.primitive == "transpose":
    return first.transpose(node.params["permutation"])
  elif first.size == math.prod(aval.shape) and node.primitive in ("reshape", "squeeze", "expand_dims"):
    return first.reshape(aval.shape)
  elif node.primitive == "dot_general" and len(reads) == 1 and (alike := _alike(traced, node, aval.shape, real)):
    return np.broadcast_to(distinct(alike, aval.dtype, ref), aval.shape)
  elif node.primitive in ("slice", "split"):
    kept = (1 if (first == first.take([0], axis)).all() else aval.shape[axis] for axis in range(first.ndim))
    return np.broadcast_to(distinct(tuple(kept), aval.dtype, ref), aval.shape)
  each = [first, *(stand_in(traced, producer, one, real) for one in reads[1:])]
  try:
    spread = [np.broadcast_to(one, aval.shape) for one in each]
  except ValueError:  # another equation than one of numbers at the same position
    return distinct(aval.shape, aval.dtype, ref)
  return spread[0].astype(aval.dtype) if len(spread) == 1 else np.mean(spread, axis=0).astype(aval.dtype)


def _alike(
  traced: graph.Graph, node: Node, shape: tuple[int, ...], real: Callable[[Any], np.ndarray]
) -> tuple[int, ...] | None:
  """Returns the shape of a product with 1 along the axes of an operand of equal numbers, such as a carry of zeros.

  None where that operand holds others.
  """
  place = next((i for i, one in enumerate(node.inputs) if not traced.analysis.value(one).leaves), None)
  if place is None:
    return None
  known, (summed, batches) = real(node.inputs[place]), node.params["dimension_numbers"]
  if not known.size or (known != known.reshape(-1)[0]).any():
    return None
  free = known.ndim - len(summed[place]) - len(batches[place])
  first = len(batches[0]) if place == 0 else len(shape) - free
  return tuple(1 if first <= axis < first + free else size for axis, size in enumerate(shape))
