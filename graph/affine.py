"""Affine equations after a site, found by what they do and measured on the numbers."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from graph import versions
from graph.ops import is_float, moves
from graph.program import Body, Node
from graph.sites import Analysis, Site

AFFINE = frozenset(("add", "sub", "mul", "div", "neg"))
_TURNS = frozenset(("rev",))  # a transposed convolution may turn its kernel round


class Chain(NamedTuple):
  """What follows a site: the nodes in order, and which operand of each comes from the site."""

  site: Site
  nodes: tuple[Node, ...]
  places: tuple[int, ...]


class Users:
  """Who reads each value, and which nodes share their values (calls are looked through, checkpoints are not)."""

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
  """The affine equations after a site, up to the last one with coefficients from the variables; None without any."""
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
    if node is None or not _is_affine(analysis, node, place) or users.frames[node.index] != users.frames[start.index]:
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


def _is_affine(analysis: Analysis, node: Node, place: int) -> bool:
  source, result = analysis.value(node.inputs[place]).aval, analysis.program.avals[node.outputs[0]]
  if not is_float(source) or not is_float(result):
    return False
  if node.primitive in AFFINE:
    others = [analysis.value(ref) for i, ref in enumerate(node.inputs) if i != place]
    same = source.shape == result.shape
    return same and not any(v.data for v in others) and not (node.primitive == "div" and place == 1)
  return place == 0 and moves(node.primitive, source, result)


def foldable(users: Users, site: Site) -> Chain | None:
  """The chain after a site whose kernel is a leaf of its own and has one axis of output channels."""
  op, analysis = site.op, users.analysis
  if op.kind not in ("dot", "conv") or op.kernel_index is None or op.channel_axis is None or site.node is None:
    return None
  if not op.inputs[op.kernel_index].exact or _kernel_moves(users, site) is None:
    return None
  chain = find_chain(users, site)
  return chain if chain is not None and analysis.program.avals[site.node.outputs[0]].shape else None


def _kernel_moves(users: Users, site: Site) -> list[Node] | None:
  """The nodes from the leaf to the kernel's operand if they only move its numbers and nothing else reads the leaf."""
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


def out_axis(site: Site) -> int:
  """Where the kernel's output channels are in the site's output."""
  op = site.op
  if op.kind == "conv":
    return op.params["dimension_numbers"].out_spec[1]
  return len(op.params["dimension_numbers"][1][0]) if op.kernel_index == 0 else len(op.outputs[0].shape) - 1


def measure(analysis: Analysis, chains: list[Chain], given: Mapping[str, Any]) -> list[tuple[Any, Any, bool]]:
  """For each chain: the offset by channel, the factor of the kernel's leaf, and whether positions agree."""

  def every(leaves: list[Any]) -> Any:
    env = dict(zip(analysis.program.body.inputs, leaves, strict=False))
    return [_measure_one(analysis, chain, env) for chain in chains]

  measured = jax.jit(every)([given[name] for name in analysis.program.leaves])
  return [(offset, kernel, bool(flat)) for offset, kernel, flat in measured]


def _measure_one(analysis: Analysis, chain: Chain, env: dict[int, Any]) -> Any:
  site = chain.site
  aval, axis = analysis.program.avals[site.node.outputs[0]], out_axis(site)

  def whole(y: Any) -> Any:
    for node, place in zip(chain.nodes, chain.places, strict=True):
      others = [y if i == place else compute(analysis, env, ref) for i, ref in enumerate(node.inputs)]
      y = versions.rebind(node.eqn, tuple(others))[0]
    return y

  def moved(y: Any) -> Any:
    for node in _moves_of(chain.nodes):
      y = versions.rebind(node.eqn, (y,))[0]
    return y

  zero = jnp.zeros(aval.shape, aval.dtype)
  at_zero, pull = jax.vjp(whole, zero)
  slope = pull(jnp.ones_like(at_zero))[0].astype(jnp.float32)
  unmove = jax.linear_transpose(moved, jax.ShapeDtypeStruct(aval.shape, jnp.float32))
  offset = unmove(at_zero.astype(jnp.float32))[0]
  shape = [n if i == axis else 1 for i, n in enumerate(aval.shape)]
  first = tuple(slice(None) if i == axis else 0 for i in range(len(aval.shape)))
  flat = jnp.array(True)
  for full in (slope, offset):
    spread = jnp.abs(full - full[first].reshape(shape))
    flat &= jnp.all(spread <= 1e-6 * jnp.max(jnp.abs(full)))
  return offset[first], _kernel_factor(analysis, site, slope[first]), flat


def _kernel_factor(analysis: Analysis, site: Site, slope: Any) -> Any:
  """The slope, broadcast over the kernel's operand, pulled back to the shape of the leaf."""
  users_moves = _leaf_path(analysis, site)
  operand = site.op.inputs[site.op.kernel_index or 0]
  shape = [n if i == site.op.channel_axis else 1 for i, n in enumerate(operand.shape)]
  full = jnp.broadcast_to(slope.reshape(shape), operand.shape)
  if not users_moves:
    return full
  start = analysis.value(users_moves[0].inputs[0]).aval

  def moved(w: Any) -> Any:
    for node in _moves_of(users_moves):
      w = versions.rebind(node.eqn, (w,))[0]
    return w

  return jax.linear_transpose(moved, jax.ShapeDtypeStruct(start.shape, jnp.float32))(full)[0]


def _leaf_path(analysis: Analysis, site: Site) -> list[Node]:
  found, current = [], analysis.value(site.node.inputs[site.op.kernel_index or 0])
  while current.producer is not None:
    found.append(current.producer)
    current = analysis.value(current.producer.inputs[0])
  return found[::-1]


def _moves_of(nodes: Any) -> Iterator[Node]:
  """The nodes that change places, and not numbers or types."""
  return (node for node in nodes if node.primitive not in AFFINE and node.primitive != "convert_element_type")


def compute(analysis: Analysis, env: dict[int, Any], ref: Any) -> Any:
  """A value that depends on variables alone; `env` holds the leaves and keeps what was computed."""
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
    env.update(zip(node.outputs, versions.rebind(node.eqn, values), strict=True))
  return env[ref]
