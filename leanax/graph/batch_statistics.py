"""Normalisation by statistics of the batch, as training mode has it after a site."""

from typing import Any

from jax.extend import core as jex

from leanax.graph.affine import AFFINE, Users, out_axes
from leanax.graph.ops import ELEMENTWISE, moves
from leanax.graph.program import Node
from leanax.graph.reshapes import runs
from leanax.graph.sites import Analysis, Site


def normalisations(users: Users, site: Site, names: list[str]) -> list[tuple[Node, ...]]:
  """Returns the chains of these primitives after a site that do the same to all entries of a channel.

  Their coefficients depend on the variables and on statistics that are the same at all places and for all examples.
  """
  found: list[tuple[Node, ...]] = []

  def walk(current: int, axes: frozenset[int], nodes: tuple[Node, ...]) -> None:
    if len(nodes) == len(names):
      found.append(nodes)
      return
    for node, place in users.readers[current]:
      if node is None or node.primitive != names[len(nodes)]:
        continue
      if users.frames[node.index] != users.frames[site.node.index] or users.analysis.scopes[node.index].frozen:
        continue
      after = axes_after(users.analysis, node, place, axes)
      if after is not None:
        walk(node.outputs[0], after, (*nodes, node))

  walk(site.node.outputs[0], frozenset(out_axes(site)), ())
  return found


def axes_after(analysis: Analysis, node: Node, place: int, axes: frozenset[int]) -> frozenset[int] | None:
  """Returns the axes of channels after an equation; None where it does more than scale, shift or move channels."""
  source, result = analysis.value(node.inputs[place]).aval, analysis.program.avals[node.outputs[0]]
  if node.primitive in AFFINE:
    others = [ref for i, ref in enumerate(node.inputs) if i != place]
    same = source.shape == result.shape and not (node.primitive == "div" and place == 1)
    return axes if same and all(_per_channel(analysis, ref, axes) for ref in others) else None
  if not moves(node.primitive, source, result):
    return None
  if node.primitive == "transpose":
    return frozenset(i for i, axis in enumerate(node.params["permutation"]) if axis in axes)
  if source.shape == result.shape:
    return axes
  found: set[int] = set()
  for left, right in runs(source.shape, result.shape):
    if any(axis in axes for axis, _ in left):
      if len(left) != 1 or len(right) != 1:
        return None
      found.add(right[0][0])
  return frozenset(found)


def _per_channel(analysis: Analysis, ref: Any, axes: frozenset[int]) -> bool:
  """Returns whether a value varies along these axes alone, as far as it depends on the inputs."""
  ref = analysis.resolve(ref)
  if isinstance(ref, jex.Literal):
    return True
  known = analysis.values[ref]
  if not known.data or all(size == 1 or axis in axes for axis, size in enumerate(known.aval.shape)):
    return True
  node = known.producer
  if node is None:
    return False
  if node.primitive == "broadcast_in_dim":
    sizes = analysis.value(node.inputs[0]).aval.shape
    places = zip(sizes, node.params["broadcast_dimensions"], strict=True)
    return all(size == 1 or place in axes for size, place in places)
  return node.primitive in ELEMENTWISE and all(_per_channel(analysis, one, axes) for one in node.inputs)
