"""Affine equations after a site, found by what they do and measured on the numbers."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core as jex

from leanax.graph import versions
from leanax.graph.ops import is_float, moves
from leanax.graph.program import Body, Node
from leanax.graph.sites import Analysis, Site

AFFINE = frozenset(("add", "sub", "mul", "div", "neg"))
_TURNS = frozenset(("rev",))  # a transposed convolution may turn its kernel round


class Chain(NamedTuple):
  """The nodes that follow a site, in order, and which operand of each comes from the site."""

  site: Site
  nodes: tuple[Node, ...]
  places: tuple[int, ...]


class Users:
  """The readers of each value, and which nodes share their values (calls are looked through, checkpoints are not)."""

  def __init__(self, analysis: Analysis):
    self.analysis = analysis
    self.sites = {site.op.name: site for site in analysis.sites}
    self.readers: dict[int, list[tuple[Node | None, int]]] = defaultdict(list)
    self.frames: dict[int, int] = {}
    for node in analysis.flat:
      for place, ref in enumerate(node.inputs):
        self._reads(node, place, ref)
      for body in node.bodies:
        for place, ref in enumerate(body.outputs):
          self._reads(None, place, ref)
    for place, ref in enumerate(analysis.program.body.outputs):
      self._reads(None, place, ref)
    self._frame(analysis.program.body, 0)

  def _reads(self, node: Node | None, place: int, ref: Any) -> None:
    same = self.analysis.resolve(ref)
    if not isinstance(same, jex.Literal):
      self.readers[same].append((node, place))

  def _frame(self, body: Body, frame: int) -> None:
    for node in body.nodes:
      self.frames[node.index] = frame
      for inner in node.bodies:
        self._frame(inner, frame if node.form == "jit" else id(inner))


def find_chain(users: Users, site: Site) -> Chain | None:
  """Returns the affine equations after a site, up to the last with coefficients from the variables, or None."""
  analysis, start = users.analysis, site.node
  scope = analysis.scopes[start.index] if start is not None else None
  if start is None or scope is None or scope.scans or scope.frozen:
    return None
  nodes: list[Node] = []
  places: list[int] = []
  last, scaled = 0, False
  current = start.outputs[0]
  while len(users.readers[current]) == 1:
    node, place = users.readers[current][0]
    if node is None or not is_affine(analysis, node, place) or users.frames[node.index] != users.frames[start.index]:
      break
    if analysis.scopes[node.index].frozen:
      break
    nodes.append(node)
    places.append(place)
    if any(analysis.value(ref).leaves for i, ref in enumerate(node.inputs) if i != place):
      last = len(nodes)
      scaled = scaled or node.primitive in ("mul", "div")
    current = node.outputs[0]
  return Chain(site, tuple(nodes[:last]), tuple(places[:last])) if scaled else None


def is_affine(analysis: Analysis, node: Node, place: int) -> bool:
  """Returns whether a node scales, shifts or moves one operand by numbers that do not depend on the inputs."""
  source, result = analysis.value(node.inputs[place]).aval, analysis.program.avals[node.outputs[0]]
  if not is_float(source) or not is_float(result):
    return False
  if node.primitive in AFFINE:
    others = [analysis.value(ref) for i, ref in enumerate(node.inputs) if i != place]
    same = source.shape == result.shape
    return same and not any(v.data for v in others) and not (node.primitive == "div" and place == 1)
  return place == 0 and moves(node.primitive, source, result)


def out_axes(site: Site) -> tuple[int, ...]:
  """Returns the axes of a site's output that its kernel's axes of outputs become: rising, those of a batch first."""
  op = site.op
  if op.kind == "conv":
    return (op.params["dimension_numbers"].out_spec[1],)
  batch = len(op.params["dimension_numbers"][1][0])
  before = batch if op.kernel_index == 0 else len(op.outputs[0].shape) - len(kernel_axes(site)) + batch
  return (*range(batch), *range(before, before + len(kernel_axes(site)) - batch))


def kernel_axes(site: Site) -> tuple[int, ...]:
  """Returns the same axes in the kernel's operand, in the same order."""
  op = site.op
  if op.kind == "conv":
    return (op.params["dimension_numbers"].rhs_spec[0],)
  (contract, batch), kernel = op.params["dimension_numbers"], op.kernel_index or 0
  summed, shared = contract[kernel], batch[kernel]
  return (*shared, *(i for i in range(len(op.inputs[kernel].shape)) if i not in summed and i not in shared))


def refusal(users: Users, chain: Chain) -> str:
  """Returns why the kernel of a site cannot take up a chain that follows it; "" where it can."""
  site, op = chain.site, chain.site.op
  if op.kernel_index is None:
    return f"it follows {op.name!r}, which multiplies two activations"
  if op.inputs[op.kernel_index].leaf is None:
    return f"it follows {op.name!r}, whose kernel is a constant"
  if not op.inputs[op.kernel_index].exact or _kernel_moves(users, site) is None:
    return f"the kernel of {op.name!r} is used more than once, or computed from others"
  if not kernel_axes(site):
    return f"the kernel of {op.name!r} has no axis of outputs"
  return ""


def _kernel_moves(users: Users, site: Site) -> list[Node] | None:
  """Returns the nodes from the leaf to the kernel's operand if they move its numbers only and nothing else reads it."""
  analysis, found = users.analysis, []
  current = analysis.resolve(site.node.inputs[site.op.kernel_index or 0])
  while True:
    known = analysis.values[current]
    if len(users.readers[current]) != 1:
      return None
    if known.producer is None:
      return found[::-1]
    node = known.producer
    source = analysis.value(node.inputs[0]).aval
    if not moves(node.primitive, source, known.aval) and node.primitive not in _TURNS:
      return None
    found.append(node)
    current = analysis.resolve(node.inputs[0])


class Measured(NamedTuple):
  """The effect of a chain on its site's output, in float64.

  Attributes:
    offset: by output channel, an axis for each of `out_axes`.
    factor: of the kernel, in the shape of its leaf (a view).
    flat: whether it does the same at every position.
  """

  offset: np.ndarray
  factor: np.ndarray
  flat: bool


@np.errstate(all="ignore")  # what is not finite is seen by the caller
def measure(users: Users, chain: Chain, env: dict[int, Any]) -> Measured:
  """Follows the slope and the offset of a chain through its equations; coefficients are the model's own numbers.

  `env` holds the variables' leaves by number, and keeps what is computed of them.
  """
  site, analysis = chain.site, users.analysis
  shape = tuple(analysis.program.avals[site.node.outputs[0]].shape)
  slope, offset = np.broadcast_to(1.0, shape), np.broadcast_to(0.0, shape)
  place = np.arange(math.prod(shape)).reshape(shape)  # where each entry was in the site's output
  for node, at in zip(chain.nodes, chain.places, strict=True):
    if node.primitive in AFFINE:
      others = [compute(analysis, env, ref) for i, ref in enumerate(node.inputs) if i != at]
      slope, offset = stepped(node, at, slope, offset, *(np.asarray(x, np.float64) for x in others))
    else:
      slope, offset, place = (_moved(analysis, node, x) for x in (slope, offset, place))
  if any(node.primitive not in AFFINE for node in chain.nodes):
    slope, offset = (_at(place, np.broadcast_to(x, place.shape), shape) for x in (slope, offset))
  axes = out_axes(site)
  first = tuple(slice(None) if i in axes else slice(1) for i in range(len(shape)))
  flat = True
  for full in (slope, offset):
    flat &= bool(np.all(np.abs(full - full[first]) <= 1e-6 * np.max(np.abs(full), initial=0.0)))
  sizes = [shape[i] for i in axes]
  return Measured(offset[first].reshape(sizes), _kernel_factor(users, site, slope[first].reshape(sizes)), flat)


def _kernel_factor(users: Users, site: Site, slope: np.ndarray) -> np.ndarray:
  """Returns the slope, broadcast over the kernel's operand, in the shape of the leaf."""
  axes, operand = kernel_axes(site), site.op.inputs[site.op.kernel_index or 0]
  shape = [n if i in axes else 1 for i, n in enumerate(operand.shape)]
  full = np.broadcast_to(slope.transpose(np.argsort(axes)).reshape(shape), operand.shape)
  path = _kernel_moves(users, site) or []
  if all(node.primitive == "convert_element_type" for node in path):
    return full
  start = tuple(users.analysis.value(path[0].inputs[0]).aval.shape)
  place = np.arange(math.prod(start)).reshape(start)
  for node in path:
    place = _moved(users.analysis, node, place)
  return _at(place, full, start)


def _at(place: np.ndarray, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Returns an array of this shape with values at these places of it, counted flat."""
  out = np.empty(math.prod(shape), values.dtype)
  out[place.reshape(-1)] = values.reshape(-1)
  return out.reshape(shape)


def _moved(analysis: Analysis, node: Node, x: Any) -> np.ndarray:
  """Returns an array as an equation moves it that computes nothing."""
  shape, params = tuple(analysis.program.avals[node.outputs[0]].shape), node.params
  if node.primitive == "transpose":
    return np.transpose(x, params["permutation"])
  if node.primitive == "rev":
    return np.flip(x, params["dimensions"])
  if node.primitive == "broadcast_in_dim":
    sizes = [1] * len(shape)
    for axis, size in zip(params["broadcast_dimensions"], np.shape(x), strict=True):
      sizes[axis] = size
    return np.broadcast_to(np.reshape(x, sizes), shape)
  return np.reshape(x, shape)


_AFFINE: dict[str, Callable[..., tuple[Any, Any]]] = {
  "add": lambda slope, offset, at, c: (slope, offset + c),
  "sub": lambda slope, offset, at, c: (slope, offset - c) if at == 0 else (-slope, c - offset),
  "mul": lambda slope, offset, at, c: (slope * c, offset * c),
  "div": lambda slope, offset, at, c: (slope / c, offset / c),
  "neg": lambda slope, offset, at: (-slope, -offset),
}


def stepped(node: Node, place: int, slope: Any, offset: Any, *others: np.ndarray) -> tuple[Any, Any]:
  """Returns the slope and the offset behind an affine node whose other operands are these numbers."""
  return _AFFINE[node.primitive](slope, offset, place, *others)


_SHAPES = frozenset(("broadcast_in_dim", "reshape", "squeeze", "transpose"))


def compute(analysis: Analysis, env: dict[int, Any], ref: Any) -> Any:
  """Returns a value that depends on variables alone; `env` holds the leaves and keeps what was computed."""
  ref = analysis.resolve(ref)
  if isinstance(ref, jex.Literal):
    return ref.val
  todo = [ref]
  while todo:
    number = todo[-1]
    node = analysis.values[number].producer
    if number in env or node is None:
      if number not in env:
        env[number] = analysis.constants[number]
      todo.pop()
      continue
    sources = [analysis.resolve(r) for r in node.inputs]
    missing = [s for s in sources if not isinstance(s, jex.Literal) and s not in env]
    if missing:
      todo.extend(missing)
      continue
    values = tuple(s.val if isinstance(s, jex.Literal) else env[s] for s in sources)
    if node.primitive in _SHAPES and len(values) == 1:  # nothing to compile
      env[node.outputs[0]] = _moved(analysis, node, np.asarray(values[0]))
    else:
      env.update(zip(node.outputs, versions.rebind(node.eqn, values), strict=True))
  return env[ref]
