"""Channels physically removed: the same equations with smaller arrays.

A site's channels are kept by index; the axes that go with them, in every leaf and every intermediate, are found by
`axes`. The function is traced at its original shapes and evaluated on the small arrays, with new shapes in the
equations that carry shapes in their parameters. What makes numbers from a shape (random bits, iota) makes them as
before and keeps those of the kept channels, so that dropout removes what it removed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from core.errors import UserError, unknown
from graph import versions
from graph.affine import out_axis
from graph.axes import Axes, Axis, is_depthwise
from graph.emit import Emitter, Replacement
from graph.program import Node, read, touched
from graph.shapes import build, leaves_by_name, shapes
from graph.sites import Analysis

Keep = Mapping[str, Sequence[int]]
Cut = tuple[np.ndarray | None, ...]  # for each axis of a value what is kept of it


class Sizes:
  """What is kept of each axis of each value, from what is kept of some."""

  def __init__(self, analysis: Analysis, seeds: Mapping[Axis, tuple[str, Sequence[int]]]):
    self.analysis = analysis
    self.axes = Axes(analysis.program)
    self.kept: dict[Axis, np.ndarray] = {}
    for axis, (name, keep) in seeds.items():
      root = self.axes.find(axis)
      indices = np.asarray(keep, np.int32)
      if root in self.axes.blocked:
        through = self.axes.blocked[root]
        raise UserError(f"the channels of {name!r} cannot be removed: they cannot be followed through {through!r}")
      if root in self.kept and not np.array_equal(self.kept[root], indices):
        raise UserError(f"the channels of {name!r} go with those of another site, of which others are kept")
      self.kept[root] = indices

  def cut(self, ref: Any) -> Cut:
    """What is kept of each axis of a value."""
    if isinstance(ref, jex.Literal):
      return ()
    return tuple(self.kept.get(self.axes.find((ref, i))) for i in range(len(self.axes.shape(ref))))

  def is_cut(self, ref: Any) -> bool:
    return any(keep is not None for keep in self.cut(ref))

  def shape(self, ref: Any) -> tuple[Any, ...]:
    """The new shape of a value."""
    return tuple(n if keep is None else len(keep) for n, keep in zip(self.axes.shape(ref), self.cut(ref), strict=True))

  def take(self, ref: Any, value: Any) -> Any:
    """Keeps of a value what is kept of its axes, where that has not been done."""
    for axis, (keep, whole) in enumerate(zip(self.cut(ref), self.axes.shape(ref), strict=True)):
      if keep is not None and value.shape[axis] == whole:
        value = jnp.take(value, keep, axis=axis)
    return value

  def emitter(self) -> Emitter:
    """Evaluates the program on values of the new shapes."""
    program = self.analysis.program
    changed = [n for n in program.nodes if any(self.is_cut(ref) for ref in (*n.inputs, *n.outputs))]
    edits = {node.index: Replacement(node.inputs, self._resized(node)) for node in changed if not node.form}
    consts = {n: self.take(n, value) for n, value in self.analysis.constants.items() if self.is_cut(n)}
    opened = touched(program, [node.index for node in changed])
    return Emitter(self.analysis, edits=edits, everything=True, touched=opened, constants=consts, sizes=self)

  def _resized(self, node: Node) -> Callable[..., tuple[Any, ...]]:
    def call(*values: Any) -> tuple[Any, ...]:
      if not any(self.is_cut(ref) for ref in node.inputs) and node.primitive != "broadcast_in_dim":
        return tuple(self.take(n, v) for n, v in zip(node.outputs, versions.rebind(node.eqn, values), strict=True))
      change = _PARAMS.get(node.primitive)
      return versions.rebind(node.eqn, values, change(self, node) if change else {})

    return call


def _slice(sizes: Sizes, node: Node) -> dict[str, Any]:
  ends = zip(node.params["limit_indices"], sizes.cut(node.inputs[0]), strict=True)
  return {"limit_indices": tuple(end if keep is None else len(keep) for end, keep in ends)}


def _conv(sizes: Sizes, node: Node) -> dict[str, Any]:
  if node.params["feature_group_count"] == 1 or not is_depthwise(sizes.axes, node):
    return {}
  return {"feature_group_count": sizes.shape(node.inputs[1])[node.params["dimension_numbers"].rhs_spec[0]]}


# Equations that carry shapes in their parameters: their new ones.
_PARAMS: dict[str, Callable[[Sizes, Node], dict[str, Any]]] = {
  "broadcast_in_dim": lambda sizes, node: {"shape": sizes.shape(node.outputs[0])},
  "reshape": lambda sizes, node: {"new_sizes": sizes.shape(node.outputs[0])},
  "dynamic_slice": lambda sizes, node: {"slice_sizes": sizes.shape(node.outputs[0])},
  "slice": _slice,
  "conv_general_dilated": _conv,
}


def sizes_of(analysis: Analysis, keep: Keep) -> Sizes:
  """The sizes of a program of which these channels are kept, by name of the site.

  Raises:
    UserError: an unknown site, an index out of range or twice, or channels that cannot be followed to their readers.
  """
  sites = {s.op.name: s for s in analysis.sites if s.op.kind in ("dot", "conv") and s.op.channel_axis is not None}
  seeds: dict[Axis, tuple[str, Sequence[int]]] = {}
  for name, indices in keep.items():
    if name not in sites:
      raise unknown("site", name, sites)
    number, axis = sites[name].node.outputs[0], out_axis(sites[name])
    count = analysis.program.avals[number].shape[axis]
    if not indices or sorted(set(indices)) != list(indices) or not 0 <= indices[0] <= indices[-1] < count:
      raise UserError(f"the kept channels of {name!r} have to be ascending indices below {count}, got {list(indices)}")
    seeds[(number, axis)] = (name, indices)
  sizes = Sizes(analysis, seeds)
  for operand, ref in zip(analysis.sites[-1].op.inputs, analysis.program.body.outputs, strict=True):
    if operand.leaf is None and sizes.is_cut(ref):
      raise UserError(f"the channels of {', '.join(map(repr, keep))} cannot be removed: the function returns them")
  return sizes


def keep_channels(
  fn: Callable[..., Any], variables: Any, keep: Keep, *inputs: Any
) -> tuple[Callable[..., Any], dict[Any, Any], list[dict[str, Any]]]:
  """Removes all channels but some from the outputs of sites, and from everything that goes with them.

  What comes out is what the original returns when those who read the removed channels give them the weight zero.

  Args:
    fn: `fn(variables, *inputs) -> out`.
    variables: nested dicts and lists of arrays.
    keep: ascending indices of the kept channels by the site's name; sites joined by a residual are cut alike.
    *inputs: an example.

  Returns:
    `(fn2, variables2, edits)`: `fn2(variables2, *inputs)` with smaller leaves; `edit(fn, edits, shapes(variables))` is
    fn2 again.
  """
  from graph.edit import edit

  original = shapes(variables)
  analysis = Analysis(read(fn, variables, *inputs))
  sizes, given = sizes_of(analysis, keep), leaves_by_name(variables)
  small = []
  for (path, _, _), name, number in zip(original, analysis.program.leaves, analysis.program.body.inputs, strict=False):
    small.append((path, sizes.take(number, given[name])))
  edits = [{"edit": "keep_channels", "keep": {name: [int(i) for i in indices] for name, indices in keep.items()}}]
  return edit(fn, edits, original), build(small), edits


def run(analysis: Analysis, keep: Keep, values: Sequence[Any]) -> list[Any]:
  """The outputs of the cut program on small variables and whole inputs."""
  sizes, body = sizes_of(analysis, keep), analysis.program.body
  for number, value, name in zip(body.inputs, values, analysis.program.leaves, strict=False):
    if jnp.shape(value) != sizes.shape(number):
      raise UserError(f"{name!r} has the shape {jnp.shape(value)}, expected {sizes.shape(number)} of the cut model")
  return sizes.emitter().run(body, values, {})[0]
