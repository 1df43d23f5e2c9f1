"""The axes of the output channels of a dot or a convolution, followed to the sum with a bias.

A bias is what varies only along the output channels. That is read from the equations between the kernel's operation and
the sum, and between the leaf and the sum, never from lengths, which may be equal by chance or 1 at some batch size.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leanax.graph.reshapes import runs

Shape = tuple[int, ...]
# From the kernel's operand, axes that are not channels of length 1, to the sum: ("transpose", permutation) or
# ("reshape", the shape before, the shape after).
Moves = tuple[tuple[Any, ...], ...]


def produced(kind: str, params: Mapping[str, Any], kernel: int, shapes: Sequence[Shape]) -> list[int | None]:
  """Returns for each axis of a dot's or a convolution's result the kernel's axis that it runs over, or None.

  Args:
    kind: "dot" or "conv".
    params: the equation's parameters.
    kernel: which operand is the kernel.
    shapes: those of both operands.
  """
  if kind == "conv":
    spec = params["dimension_numbers"]
    channels: list[int | None] = [None] * len(spec.out_spec)
    if kernel == 1:
      channels[spec.out_spec[1]] = spec.rhs_spec[0]
    return channels
  contract, batch = params["dimension_numbers"]
  found: list[int | None] = list(batch[kernel])
  for operand, shape in enumerate(shapes):
    free = [axis for axis in range(len(shape)) if axis not in contract[operand] and axis not in batch[operand]]
    found += free if operand == kernel else [None] * len(free)
  return found


def follow(
  channels: Sequence[int | None], kernel: Shape, nodes: Sequence[Any], avals: Any
) -> tuple[Moves, set[int]] | None:
  """Returns the moves of values of one output channel each from the kernel's axes to where these nodes take the result.

  Args:
    channels: what `produced` gives.
    kernel: the kernel operand's shape.
    nodes: moves (`ops.moves`) from the result on.
    avals: shapes of values by number.

  Returns:
    The moves, and which axes are those of channels afterwards; None where they are mixed with others on the way.
  """
  kept = [axis for axis in channels if axis is not None]
  order = (*kept, *(axis for axis in range(len(kernel)) if axis not in kept))
  lengths = tuple(n if axis in kept else 1 for axis, n in enumerate(kernel))
  shape = tuple(1 if axis is None else kernel[axis] for axis in channels)
  moves: list[tuple[Any, ...]] = [("transpose", order), ("reshape", tuple(lengths[axis] for axis in order), shape)]
  marked = [axis is not None for axis in channels]
  for node in nodes:
    (source, result) = (tuple(avals[number].shape) for number in (node.inputs[0], node.outputs[0]))
    if node.primitive == "transpose":
      order = node.params["permutation"]
      marked, shape = [marked[axis] for axis in order], tuple(shape[axis] for axis in order)
      moves.append(("transpose", order))
    elif source != result:
      if 0 in source:
        return None
      after = [False] * len(result)
      for left, right in runs(source, result):
        if len({marked[axis] for axis, _ in left}) > 1:
          return None
        for axis, _ in right:
          after[axis] = marked[left[0][0]]
      before, marked = shape, after
      shape = tuple(n if is_channel else 1 for n, is_channel in zip(result, marked, strict=True))
      moves.append(("reshape", before, shape))
  return tuple(moves), {axis for axis, is_channel in enumerate(marked) if is_channel}


def varying(shape: Shape, nodes: Sequence[Any], avals: Any) -> set[int]:
  """Returns the axes along which a leaf of this shape may vary after these nodes (`ops.leaf_moves`)."""
  axes = {axis for axis, n in enumerate(shape) if n > 1}
  for node in nodes:
    source, result = (tuple(avals[number].shape) for number in (node.inputs[0], node.outputs[0]))
    if node.primitive == "transpose":
      axes = {place for place, axis in enumerate(node.params["permutation"]) if axis in axes}
    elif node.primitive == "broadcast_in_dim":
      axes = {place for axis, place in enumerate(node.params["broadcast_dimensions"]) if axis in axes}
    elif math.prod(source) == math.prod(result) > 0 and source != result:
      pairs = runs(source, result)
      axes = {axis for left, right in pairs if any(axis in axes for axis, _ in left) for axis, _ in right}
  return axes


def to_sum(values: Any, moves: Moves) -> Any:
  """Returns values of one output channel each, in the kernel operand's axes (1 where none), in the axes of the sum."""
  for kind, *shapes in moves:
    values = values.transpose(shapes[0]) if kind == "transpose" else values.reshape(shapes[1])
  return values


def to_kernel(values: Any, moves: Moves) -> Any:
  """Does the reverse of `to_sum`."""
  for kind, *shapes in reversed(moves):
    if kind == "transpose":
      values = values.transpose(sorted(range(values.ndim), key=lambda place, order=shapes[0]: order[place]))
    else:
      values = values.reshape(shapes[0])
  return values


def shape_of(moves: Moves) -> Shape:
  """Returns the kernel operand's shape with 1 on the axes that are no channels."""
  order, lengths = moves[0][1], moves[1][1]
  return tuple(lengths[order.index(axis)] for axis in range(len(order)))


def to_sum_shape(moves: Moves) -> Shape:
  """Returns the shape that `to_sum` gives."""
  return to_sum(np.empty(shape_of(moves), bool), moves).shape
