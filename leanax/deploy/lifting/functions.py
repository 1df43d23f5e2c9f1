"""Functions of single numbers, such as hard_swish, recognised by their values.

However a function is spelled, its equations are evaluated on a grid of numbers and compared with `deploy.functions`;
its parameters are read off the values. A plain max(x, 0) is left to the layer before it, and what is affine to biases,
factors and layers of two tensors.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from leanax.deploy import ir
from leanax.deploy.functions import FUNCTIONS, POSITIVE
from leanax.deploy.lifting.drafts import Composite
from leanax.deploy.lifting.regions import ELEMENTS, Flow, Region, evaluate, in_float32
from leanax.deploy.lifting.traced import Traced
from leanax.graph.program import Node

_SMALL, _LARGE = np.geomspace(1e-6, 0.05, 24), np.geomspace(31, 1e6, 40)
_HALF = np.concatenate([_SMALL, np.arange(1, 301) / 10, _LARGE])
POINTS = np.concatenate([-_HALF[::-1], [0], _HALF])
FEW = np.array([0.5, 1.0, 4.0])
PLAIN = (POINTS > 0) & (POINTS <= 30)  # where every function of the table has finite numbers

Constant = Callable[[Any], Any]  # an operand to one number, or one per channel; None where it has more

_IDENTITIES = frozenset(("copy", "copy_p", "stop_gradient", "name", "convert_element_type"))
_AFFINE = frozenset(("add", "add_any", "sub", "mul", "div"))


def find(traced: Traced, done: frozenset[int], rounded: Collection[str] = ()) -> list[Composite]:
  """Returns the groups of equations that are one such layer.

  Args:
    traced: the function.
    done: indices of equations that are part of other layers.
    rounded: names of activations that a simulation rounds.
  """
  numbers = functools.cache(lambda number: _per_channel(traced.constant(number)))

  def constant(ref: Any) -> Any:
    return numbers(ref) if isinstance(ref, int) else np.asarray(ref.val)

  taken = set(done)
  flow = Flow(traced, lambda node: node.index not in taken and _allowed(traced, node, constant), rounded)
  found = []
  for node in reversed(traced.nodes):  # the outermost function first
    if node.index not in taken and node.primitive in ELEMENTS:
      composite = _layer(traced, flow, node, constant)
      if composite is not None:
        taken |= composite.nodes
        found.append(composite)
  return found


def _layer(traced: Traced, flow: Flow, node: Node, constant: Constant) -> Composite | None:
  """Returns the largest function that ends in an equation, without what only hands its input on before it."""
  regions = flow.regions(node.outputs[0])
  if not regions or node.primitive in _IDENTITIES:
    return None
  for place in range(len(regions) - 1, -1, -1):
    region = regions[place]
    if not _plausible(evaluate(traced, region, FEW[:, None], constant)[region.end]):
      continue
    env = evaluate(traced, region, POINTS[:, None], constant)
    match = _match(region, env[region.end])
    if match is None:
      continue
    if node.primitive in _AFFINE and np.array_equal(env[regions[0].root], env[region.end], equal_nan=True):
      return None  # a bias of zeros or a factor of ones behind the function, which is found at its own end
    same = [one for one in regions[:place] if np.array_equal(env[one.root], env[region.root])]
    region = (same or [region])[0]
    if match.kind is ir.Relu and len(region.nodes) == 1:
      return None
    nodes = frozenset(one.index for one in region.nodes)
    positive = match.fields.get("function") in POSITIVE
    return Composite(match.kind, (region.root,), region.end, nodes, dict(match.fields), positive)
  return None


def _plausible(few: np.ndarray) -> bool:
  """Returns whether a region may be a layer: with a number per channel that is a PReLU, which keeps what is above 0."""
  return few.ndim < 2 or few.shape[1] == 1 or np.allclose(few, FEW[:, None])


class _Match(NamedTuple):
  kind: type[ir.Layer]
  fields: Mapping[str, Any]


@np.errstate(all="ignore")
def _match(region: Region, values: np.ndarray) -> _Match | None:
  """Returns the layer with these values (points, 1), or (points, channels) of one with a number per channel."""
  y = np.broadcast_to(values, (len(POINTS), *np.shape(values)[1:]))
  if not np.isfinite(y[PLAIN]).all():
    return None
  if y.shape[1] > 1:
    slope = -_at(y, -1.0)
    expected = np.where(POINTS[:, None] >= 0, POINTS[:, None], slope * POINTS[:, None])
    return _Match(ir.Prelu, {"slope": slope.astype(np.float32)}) if _close(y, expected) else None
  y = y[:, 0]
  line = _at(y, 0.0) + (_at(y, 1.0) - _at(y, 0.0)) * POINTS
  if _close(y, line):
    alone = len(region.nodes) == 1 and region.nodes[0].primitive == "neg"
    return _Match(ir.Activation, {"function": "neg"}) if alone else None
  for name in FUNCTIONS:
    parameters = _PARAMETERS.get(name, lambda y: ())(y)
    if parameters is not None and _close(y, _expected(name, parameters)):
      if name == "relu":
        return _Match(ir.Relu, {})
      return _Match(ir.Activation, {"function": name, "parameters": parameters})
  return None


@functools.lru_cache(maxsize=256)
def _expected(name: str, parameters: tuple[float, ...]) -> np.ndarray:
  return FUNCTIONS[name](POINTS, *parameters)


def _at(y: np.ndarray, point: float) -> Any:
  return y[np.argmin(np.abs(POINTS - point))]


def _close(y: np.ndarray, expected: np.ndarray) -> bool:
  """Returns whether values are these; where the equations give no number or overflow, the layer may give one."""
  known = np.isfinite(y)
  return bool((np.abs(y - expected)[known] <= 1e-7 + 1e-6 * np.abs(y)[known]).all())


def _limits(y: np.ndarray) -> tuple[float, float] | None:
  (low, again), (before, high) = y[:2], y[-2:]
  return (float(low), float(high)) if low == again < before == high else None


def _exponent(y: np.ndarray) -> tuple[float] | None:
  at_two = float(_at(y, 2.0))
  return (float(np.float32(np.log2(at_two))),) if at_two > 0 else None


# The parameters of a function, read off its values; None where it cannot be that function.
_PARAMETERS: dict[str, Callable[[np.ndarray], tuple[float, ...] | None]] = {
  "clip": _limits,
  "leaky_relu": lambda y: (float(np.float32(-_at(y, -1.0))),),
  "elu": lambda y: (float(np.float32(_at(y, -1.0) / np.expm1(-1.0))),),
  "celu": lambda y: (float(np.float32(-y[0])),) if np.isfinite(y[0]) and y[0] else None,
  "power": _exponent,
}


def _allowed(traced: Traced, node: Node, constant: Constant) -> bool:
  """Returns whether an equation makes each number of the number at the same place, alike everywhere or by channel."""
  if node.primitive not in ELEMENTS:
    return False
  shape = traced.aval(node.outputs[0]).shape
  if not in_float32(traced, node) or any(traced.aval(number).shape != shape for number in traced.data(node)):
    return False
  others = [constant(ref) for ref in node.inputs if not traced.is_data(ref)]
  return all(other is not None and (len(shape) > 1 or other.size == 1) for other in others)


def _per_channel(constant: np.ndarray) -> np.ndarray | None:
  """Returns a constant as one number, or as one per entry of its last axis; None if it has more."""
  if constant.size == 0:
    return None
  rows = constant.reshape(-1, constant.shape[-1] if constant.ndim else 1)
  if not np.array_equal(rows, np.broadcast_to(rows[0], rows.shape)):
    return None
  row = rows[0].astype(np.float64) if rows.dtype.kind == "f" else rows[0]
  return row.reshape(-1)[:1] if (row == row[0]).all() else row
