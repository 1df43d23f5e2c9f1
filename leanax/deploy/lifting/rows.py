"""Functions of rows, such as softmax, recognised by their values.

The equations may be any that sum, or take the largest of, one axis, with functions of numbers at the same place between
them. They are evaluated on random numbers and compared with the definition.
"""

import numpy as np

from leanax.deploy import ir
from leanax.deploy.lifting.drafts import Composite
from leanax.deploy.lifting.regions import PRIMITIVES, Flow, Region, evaluate, in_float32
from leanax.deploy.lifting.traced import Traced
from leanax.graph.program import Node

_REDUCTIONS = ("reduce_max", "reduce_sum")
_ENDS = ("div", "mul", "sub", "exp", "log")  # the last equation of a softmax


def find(traced: Traced) -> list[Composite]:
  """Returns the groups of equations that are one such layer."""
  if not any(node.primitive == "exp" for node in traced.nodes):
    return []
  flow = Flow(traced, lambda node: node.primitive in PRIMITIVES and in_float32(traced, node))
  found: list[Composite] = []
  taken: frozenset[int] = frozenset()
  for node in reversed(traced.nodes):
    if node.index not in taken and node.primitive in _ENDS:
      composite = _softmax(traced, flow.regions(node.outputs[0]))
      if composite is not None:
        found.append(composite)
        taken |= composite.nodes
  return found


def _softmax(traced: Traced, regions: list[Region]) -> Composite | None:
  """Returns the softmax with the most reductions, without the equations before the first of them."""
  axes = {region: axis for region in regions if (axis := _axis(traced, region)) is not None}
  for region in sorted(axes, key=lambda region: (-len(_reductions(region)), len(region.nodes))):
    axis, shape = axes[region], traced.aval(region.root).shape
    x = 4 * np.random.default_rng(0).normal(size=shape)
    made = evaluate(traced, region, x, lambda ref: _double(traced.constant(ref)))[region.end]
    for log in (False, True):
      if np.allclose(made, softmax(x, axis, log), rtol=1e-6, atol=1e-12):
        fields = {"log": log, "axis": -1 if axis == len(shape) - 1 else axis}
        return Composite(ir.Softmax, (region.root,), region.end, frozenset(node.index for node in region.nodes), fields)
  return None


def softmax(x: np.ndarray, axis: int, log: bool) -> np.ndarray:
  """Returns exp(x) over its sum along an axis, or the logarithm of that."""
  moved = x - x.max(axis, keepdims=True)
  total = np.exp(moved).sum(axis, keepdims=True)
  return moved - np.log(total) if log else np.exp(moved) / total


def _reductions(region: Region) -> list[Node]:
  return [node for node in region.nodes if node.primitive in _REDUCTIONS]


def _axis(traced: Traced, region: Region) -> int | None:
  """Returns the one axis that a region of exponentials sums over; None if it is no such region."""
  shape, reductions = traced.aval(region.root).shape, _reductions(region)
  whole = all(traced.aval(traced.data(node)[0]).shape == shape for node in reductions)
  axes = {axis for node in reductions for axis in node.params["axes"]}
  kinds = {node.primitive for node in region.nodes}
  sound = whole and len(axes) == 1 and axes != {0} and {"exp", "reduce_sum"} <= kinds
  return axes.pop() if sound else None


def _double(constant: np.ndarray) -> np.ndarray:
  return constant.astype(np.float64) if constant.dtype.kind == "f" else constant
