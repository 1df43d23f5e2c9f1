"""Regions of equations that make one value of another one, and what they compute, in float64 numpy."""

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import numpy as np

from leanax.deploy.lifting.traced import Traced
from leanax.graph.program import Node

MOST = 64  # equations of a region


class Region(NamedTuple):
  """Equations, in order, that make the value `end` of the value `root`; nothing else reads what they make between."""

  root: int
  end: int
  nodes: tuple[Node, ...]


class Flow:
  """Who makes and who reads each value of a traced function, for the search of regions.

  Args:
    traced: the function.
    allowed: whether an equation may be part of a region.
    rounded: names of activations that are rounded, and so are no values between two equations of a region.
  """

  def __init__(self, traced: Traced, allowed: Callable[[Node], bool], rounded: Collection[str] = ()) -> None:
    self.traced, self.allowed, self.rounded = traced, allowed, rounded
    self._makers = {number: (place, node) for place, node in enumerate(traced.nodes) for number in node.outputs}
    self._readers: dict[int, set[int]] = {number: {-1} for number in traced.outputs.values()}
    for node in traced.nodes:
      for number in traced.data(node):
        self._readers.setdefault(number, set()).add(node.index)

  def regions(self, end: int) -> list[Region]:
    """Returns the regions of floats that end at a value, the smallest first; each holds those before it."""
    found, nodes, front = [], [], {end}
    while len(nodes) < MOST:
      # The latest value of the front depends on none of the others, so no region can start at it before they are gone.
      latest = max(front, key=lambda number: self._makers.get(number, (-1, None))[0])
      if latest not in self._makers or not self.allowed(self._makers[latest][1]):
        break
      nodes.append(self._makers[latest][1])
      front = front - {latest} | set(self.traced.data(nodes[-1]))
      (root,) = front if len(front) == 1 else (None,)
      if root is not None and self._sound(root, end, nodes):
        found.append(Region(root, end, tuple(nodes[::-1])))
    return found

  def _sound(self, root: int, end: int, nodes: list[Node]) -> bool:
    first, last = self.traced.aval(root), self.traced.aval(end)
    if first.shape != last.shape or not first.dtype == last.dtype == np.float32:
      return False
    inside = {node.index for node in nodes}
    between = {number for node in nodes for number in node.outputs} - {end}
    return all(
      self._readers.get(number, set()) <= inside and self.traced.tensor(number) not in self.rounded
      for number in between
    )


def evaluate(traced: Traced, region: Region, x: np.ndarray, constant: Callable[[Any], np.ndarray]) -> dict[int, Any]:
  """Returns the values of a region's equations by number, for float64 values `x` of its root.

  Args:
    traced: the function.
    region: equations of `PRIMITIVES`.
    x: values of the root.
    constant: the value of an operand that does not depend on the input, in a shape that broadcasts against `x`.
  """
  env = {region.root: x}
  with np.errstate(all="ignore"):
    for node in region.nodes:
      read = [env[traced.graph.resolve(ref)] if traced.is_data(ref) else constant(ref) for ref in node.inputs]
      env[node.outputs[0]] = PRIMITIVES[node.primitive](node.params, *read)
  return env


def in_float32(traced: Traced, node: Node) -> bool:
  """Returns whether an equation reads and makes float32 and truth values alone."""
  return all(traced.aval(number).dtype in (np.float32, bool) for number in (*traced.data(node), node.outputs[0]))


def _select(params: Any, which: Any, *cases: Any) -> np.ndarray:
  return np.where(which, cases[1], cases[0]) if len(cases) == 2 else np.choose(np.asarray(which, int), cases)


def _round(params: Any, x: Any) -> np.ndarray:
  even = params["rounding_method"] == jax.lax.RoundingMethod.TO_NEAREST_EVEN
  return np.rint(x) if even else np.trunc(x + np.copysign(0.5, x))


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
  return lambda params, *args: function(*args)


def _same(params: Any, x: Any) -> Any:
  return x


_erf, _erfc = (np.vectorize(function, otypes=[np.float64]) for function in (math.erf, math.erfc))

# Primitive to a numpy function of the equation's parameters and operands.
ELEMENTS: dict[str, Callable[..., Any]] = {
  **{name: _plain(getattr(np, name)) for name in ("exp", "log", "log1p", "expm1", "sqrt", "cbrt", "abs", "sign")},
  **{name: _plain(getattr(np, name)) for name in ("floor", "ceil", "sin", "cos", "tan", "tanh", "sinh", "cosh")},
  **dict.fromkeys(("add", "add_any"), _plain(np.add)),
  **dict.fromkeys(("copy", "copy_p", "stop_gradient", "name"), _same),
  "sub": _plain(np.subtract),
  "mul": _plain(np.multiply),
  "div": _plain(np.divide),
  "max": _plain(np.maximum),
  "min": _plain(np.minimum),
  "clamp": _plain(lambda low, x, high: np.minimum(np.maximum(x, low), high)),
  "neg": _plain(np.negative),
  "square": _plain(np.square),
  "rsqrt": _plain(lambda x: 1 / np.sqrt(x)),
  "logistic": _plain(lambda x: np.exp(-np.logaddexp(0, -x))),
  "exp2": _plain(np.exp2),
  "erf": _plain(_erf),
  "erfc": _plain(_erfc),
  "pow": _plain(np.power),
  "integer_pow": lambda params, x: np.power(x, float(params["y"])),
  "round": _round,
  "select_n": _select,
  "lt": _plain(np.less),
  "le": _plain(np.less_equal),
  "gt": _plain(np.greater),
  "ge": _plain(np.greater_equal),
  "eq": _plain(np.equal),
  "ne": _plain(np.not_equal),
  "and": _plain(np.logical_and),
  "or": _plain(np.logical_or),
  "not": _plain(np.logical_not),
  "is_finite": _plain(np.isfinite),
  "convert_element_type": lambda params, x: np.asarray(x, np.float64 if params["new_dtype"] == np.float32 else bool),
}


def _broadcast(params: Any, x: Any, *_: Any) -> np.ndarray:
  x = np.asarray(x)
  shape, places = [1] * len(params["shape"]), params["broadcast_dimensions"]
  for place, size in zip(places, x.shape, strict=True):
    shape[place] = size
  return np.broadcast_to(x.reshape(shape), params["shape"])


ROWS: dict[str, Callable[..., Any]] = {
  "reduce_max": lambda params, x: np.max(x, axis=tuple(params["axes"])),
  "reduce_sum": lambda params, x: np.sum(x, axis=tuple(params["axes"])),
  "broadcast_in_dim": _broadcast,
  "reshape": lambda params, x, *_: np.reshape(x, params["new_sizes"]),
  "squeeze": lambda params, x: np.squeeze(x, tuple(params["dimensions"])),
}

PRIMITIVES = {**ELEMENTS, **ROWS}
