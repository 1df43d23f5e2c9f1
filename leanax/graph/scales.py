"""Scales and offsets of each channel that the variables hold, standing alone: what a depthwise convolution can be.

Affine equations in a row have numbers of the variables. The first leaf that the activation is multiplied by and that
nothing else reads becomes the kernel, the last one that is added the bias; the others, such as statistics, are gone.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from leanax.graph.affine import AFFINE, Users, compute, is_affine, stepped
from leanax.graph.ends import varying
from leanax.graph.ops import moves
from leanax.graph.program import Node, leaf_name
from leanax.graph.shapes import beside, leaves_by_name
from leanax.graph.sites import Analysis

_ROOTS = frozenset(("sqrt", "rsqrt", "pow", "cbrt"))
_MOST = 4  # axes of what is convolved; of more the channels must be the last


class Chain(NamedTuple):
  """Affine equations in a row, each with numbers of the variables, and which operand of each is the activation."""

  nodes: tuple[Node, ...]
  places: tuple[int, ...]


class Scaled(NamedTuple):
  """A chain as a depthwise convolution.

  Attributes:
    chain: the chain.
    axis: of the channels.
    scale: the path of the kernel's leaf.
    bias: that of the bias.
    numbers: of both, by channel, in float64.
  """

  chain: Chain
  axis: int
  scale: tuple[Any, ...]
  bias: tuple[Any, ...]
  numbers: tuple[np.ndarray, np.ndarray]


def batch_norm_chains(users: Users) -> list[Chain]:
  """Returns the chains that divide by a root of the variables, in order."""
  analysis = users.analysis
  return _chains(users, (node for node in analysis.flat if root(analysis, node) is not None))


def chains_of(users: Users, scale: str) -> list[Chain]:
  """Returns the chains in which an activation is multiplied by this leaf."""
  flat, analysis = users.analysis.flat, users.analysis
  scaling = [node for node in flat if node.primitive in ("mul", "div") and _places(users, node)]
  return _chains(
    users, (node for node in scaling if scale in factors(analysis, node.inputs[1 - _places(users, node)[0]]))
  )


def scaled(users: Users, chains: Iterable[Chain], variables: Any) -> list[Scaled]:
  """Returns those of the chains that can be depthwise convolutions."""
  analysis, given = users.analysis, leaves_by_name(variables)
  paths = {leaf_name(path): path for path, _ in jax.tree_util.tree_leaves_with_path(variables)}
  env = dict(zip(analysis.program.body.inputs, (given[name] for name in analysis.program.leaves), strict=False))
  found: list[Scaled] = []
  for chain in chains:
    taken = [*given, *(leaf_name(path) for one in found for path in (one.scale, one.bias))]
    axis, names = _axis(users, chain), _names(users, chain, variables, paths, taken)
    if axis is not None and names is not None:
      numbers = _measured(analysis, chain, axis, env)
      if all(np.isfinite(one).all() for one in numbers):
        found.append(Scaled(chain, axis, *names, numbers))
  return found


def root(analysis: Analysis, node: Node) -> Node | None:
  """Returns the root of variables that an activation is multiplied by in this node, or divided by."""
  if node.primitive not in ("mul", "div") or not analysis.value(node.outputs[0]).data:
    return None
  for place, ref in enumerate(node.inputs):
    if analysis.value(ref).data or (node.primitive == "div" and place == 0):
      continue
    todo, seen = [ref], set()
    while todo:
      known = analysis.value(todo.pop())
      maker = known.producer
      if maker is None or maker.index in seen or not known.leaves:
        continue
      seen.add(maker.index)
      if maker.primitive in _ROOTS:
        return maker
      todo.extend(r for r in maker.inputs if not isinstance(analysis.resolve(r), jex.Literal))
  return None


def _chains(users: Users, nodes: Iterable[Node]) -> list[Chain]:
  found = [_around(users, node) for node in nodes if _places(users, node)]
  return list({chain.nodes[0].index: chain for chain in found}.values())


def _around(users: Users, node: Node) -> Chain:
  """Returns the affine equations around one of them that read numbers of the variables."""
  analysis, (place,) = users.analysis, _places(users, node)
  nodes, places = [node], [place]

  def joins_in(other: Node | None) -> bool:
    return other is not None and users.frames[other.index] == users.frames[node.index] and bool(_places(users, other))

  while len(users.readers[number := analysis.resolve(nodes[0].inputs[places[0]])]) == 1:
    before = analysis.values[number].producer
    if before is None or not joins_in(before) or before.index in analysis.at:  # a layer takes up its bias
      break
    nodes, places = [before, *nodes], [_places(users, before)[0], *places]
  while len(users.readers[nodes[-1].outputs[0]]) == 1:
    behind, at = users.readers[nodes[-1].outputs[0]][0]
    if behind is None or not joins_in(behind):
      break
    nodes, places = [*nodes, behind], [*places, at]
  return Chain(tuple(nodes), tuple(places))


def _places(users: Users, node: Node) -> list[int]:
  """Returns which operand of an affine equation with numbers of the variables is the activation; nothing otherwise."""
  analysis, scope = users.analysis, users.analysis.scopes[node.index]
  if node.primitive not in AFFINE or len(node.inputs) != 2 or scope.scans or scope.frozen or scope.branches:
    return []
  found = [place for place, ref in enumerate(node.inputs) if analysis.value(ref).data]
  if len(found) != 1 or not is_affine(analysis, node, found[0]):
    return []
  return found if analysis.value(node.inputs[1 - found[0]]).leaves else []


def _axis(users: Users, chain: Chain) -> int | None:
  """Returns the axis of the channels; None where there is not one, or no convolution over the others."""
  analysis, axes = users.analysis, set[int]()
  for node, place in zip(chain.nodes, chain.places, strict=True):
    axes |= varying(analysis, node.inputs[1 - place])
  made = analysis.program.avals[chain.nodes[-1].outputs[0]]
  served = made.dtype == jnp.float32 and len(axes) == 1 and 0 not in axes
  return max(axes) if served and (made.ndim <= _MOST or axes == {made.ndim - 1}) else None


def _names(
  users: Users, chain: Chain, variables: Any, paths: Mapping[str, Any], taken: Collection[str]
) -> tuple[Any, Any] | None:
  """Returns the paths of the kernel and the bias: the scale and the bias that the chain alone reads, or a new leaf."""
  analysis = users.analysis
  found: dict[str, Any] = {}
  for node, place in zip(chain.nodes, chain.places, strict=True):
    of = node.inputs[1 - place]
    key = {"add": "bias", "mul": "scale", "div": "scale"}.get(node.primitive, "")
    exact = analysis.value(of).exact
    leaves = factors(analysis, of) if key == "scale" else [] if exact is None else [analysis.program.leaves[exact]]
    own = [name for name in leaves if _reads_alone(users, chain, name)]
    if key and own:
      found[key] = paths[own[0]]
  if not found:
    return None
  for key, other in (("scale", "bias"), ("bias", "scale")):
    if key not in found:
      new = beside(variables, found[other], key)
      if new is None or leaf_name(new) in taken:
        return None
      found[key] = new
  return found["scale"], found["bias"]


def factors(analysis: Analysis, ref: Any) -> list[str]:
  """Returns the leaves of which a value of the variables is a multiple: the scale, and not the variance."""
  todo, found = [ref], []
  while todo:
    known = analysis.value(todo.pop())
    node = known.producer
    if known.exact is not None:
      found.append(analysis.program.leaves[known.exact])
    elif node is not None:
      source = analysis.value(node.inputs[0]).aval
      if node.primitive in ("mul", "div") or moves(node.primitive, source, known.aval):
        above = node.inputs[: 1 if node.primitive == "div" else None]
        todo += [one for one in above if not isinstance(analysis.resolve(one), jex.Literal)]
  return found


def _reads_alone(users: Users, chain: Chain, leaf: str) -> bool:
  """Returns whether all that is made of a leaf of the variables goes into one chain."""
  analysis, inside = users.analysis, {node.index for node in chain.nodes}
  todo = [analysis.program.body.inputs[analysis.program.leaves.index(leaf)]]
  while todo:
    for node, _ in users.readers[todo.pop()]:
      if node is None or (node.index not in inside and any(analysis.values[n].data for n in node.outputs)):
        return False
      todo += [] if node.index in inside else node.outputs
  return True


def _measured(analysis: Analysis, chain: Chain, axis: int, env: dict[int, Any]) -> tuple[np.ndarray, np.ndarray]:
  """Returns the scale and the offset of each channel, in float64."""
  shape = analysis.program.avals[chain.nodes[-1].outputs[0]].shape
  slope, offset = np.float64(1), np.float64(0)
  with np.errstate(all="ignore"):  # what is not finite is seen by the caller
    for node, place in zip(chain.nodes, chain.places, strict=True):
      other = np.asarray(compute(analysis, env, node.inputs[1 - place]), np.float64)
      slope, offset = stepped(node, place, slope, offset, other)
  first = tuple(slice(None) if i == axis else 0 for i in range(len(shape)))
  return np.broadcast_to(slope, shape)[first], np.broadcast_to(offset, shape)[first]
