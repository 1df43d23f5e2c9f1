"""Bilinear resizes, which are traced to products with a constant matrix for the rows and one for the columns."""

from collections import defaultdict
from typing import Any

import numpy as np

from leanax.deploy import ir
from leanax.deploy.lifting.drafts import Composite
from leanax.deploy.lifting.traced import Traced
from leanax.graph.program import Node


def find(traced: Traced) -> list[Composite]:
  """Returns the products and transposes that resize images (N, H, W, C), each group as one layer.

  Matrices of another kind (a smaller image that is smoothed, bicubic) are left to be products.
  """
  readers = defaultdict(list)
  for node in traced.nodes:
    for number in traced.data(node):
      readers[number].append(node)
  found, done = [], set()
  for node in traced.nodes:
    if node.primitive == "dot_general" and node.index not in done and (group := _group(traced, node, readers)):
      found.append(group)
      done |= group.nodes
  return found


def _group(traced: Traced, node: Node | None, readers: dict[int, list[Node]]) -> Composite | None:
  """Returns the resize that starts with an equation, followed as long as each value has one reader."""
  source, axes, matrices, nodes, found = None, [0, 1, 2, 3], {}, set(), None
  while node is not None:
    if node.primitive == "transpose" and source is not None:
      axes = [axes[axis] for axis in node.params["permutation"]]
    else:
      step = _matrix(traced, node)
      if step is None or axes[step[1]] in matrices:
        break
      place, at, matrix = step
      source = traced.graph.resolve(node.inputs[place]) if source is None else source
      axis = axes.pop(at)
      matrices[axis] = matrix
      axes = [*axes, axis] if place == 0 else [axis, *axes]
    nodes.add(node.index)
    end = node.outputs[0]
    if axes == [0, 1, 2, 3] and set(matrices) <= {1, 2} and all(map(_bilinear, matrices.values())):
      assert source is not None
      found = Composite(ir.Resize, (source,), end, frozenset(nodes), {"method": "bilinear"})
    node = readers[end][0] if len(readers[end]) == 1 and end not in traced.outputs.values() else None
  return found


def _matrix(traced: Traced, node: Node) -> tuple[int, int, np.ndarray] | None:
  """Returns the place of the operand of four axes that depends on the input, the axis and the matrix (old, new)."""
  places = [place for place, ref in enumerate(node.inputs) if traced.is_data(ref)]
  if node.primitive != "dot_general" or len(places) != 1:
    return None
  summed, batch = node.params["dimension_numbers"]
  place, (own, other) = places[0], (summed[places[0]], summed[1 - places[0]])
  shapes: list[Any] = [traced.graph.analysis.value(ref).aval.shape for ref in node.inputs]
  if len(shapes[place]) != 4 or len(shapes[1 - place]) != 2 or len(own) != 1 or any(map(len, batch)):
    return None
  matrix = traced.constant(node.inputs[1 - place])
  return place, int(own[0]), matrix if int(other[0]) == 0 else matrix.T


def _bilinear(matrix: np.ndarray) -> bool:
  """Returns whether a matrix (old, new) interpolates between the two nearest centres of pixels, edges repeated."""
  old, new = matrix.shape
  at = (np.arange(new) + 0.5) * old / new - 0.5
  low = np.floor(at).astype(int)
  wanted = np.zeros((old, new))
  for neighbour, share in ((low, 1 - (at - low)), (low + 1, at - low)):
    np.add.at(wanted, (np.clip(neighbour, 0, old - 1), np.arange(new)), share)
  return np.allclose(matrix, wanted, atol=1e-5)
