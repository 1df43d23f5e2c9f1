"""Channels physically removed: the same equations with smaller arrays.

A site's channels are kept by index; the axes that go with them, in every leaf and every intermediate, are found by
`axes`. The function is traced at its original shapes and evaluated on the small arrays, with new shapes in the
equations that carry shapes in their parameters. What makes numbers from a shape (random bits, iota) makes them as
before and keeps those of the kept channels, so that dropout removes what it removed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from leanax.core.errors import UserError, unknown
from leanax.graph import versions
from leanax.graph.affine import out_axes
from leanax.graph.axes import Axes, Axis, is_depthwise
from leanax.graph.emit import Emitter, Replacement
from leanax.graph.program import Node, read, touched
from leanax.graph.shapes import leaves_by_name, structs
from leanax.graph.sites import Analysis, Site

Keep = Mapping[str, Any]
Cut = tuple[np.ndarray | None, ...]  # for each axis of a value what is kept of it


class Sizes:
  """What is kept of each axis of each value, from what is kept of some."""

  def __init__(self, analysis: Analysis, seeds: Mapping[Axis, tuple[str, Sequence[int]]]):
    self.analysis = analysis
    self.axes = Axes(analysis.program)
    self.kept: dict[Axis, np.ndarray] = {}
    self.kept_of = {name: list(keep) for name, keep in seeds.values()}
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


def _channel_axis(site: Site) -> int:
  op, axes = site.op, ()
  if op.kind not in ("dot", "conv"):
    why = f"it is of the kind {op.kind!r}"
  elif op.kernel_index is None:
    why = "it multiplies two activations"
  else:
    axes = out_axes(site)
    sizes = tuple(op.outputs[0].shape[axis] for axis in axes)
    why = f"its kernel has {len(axes)} axes of outputs, {sizes}"
  if len(axes) != 1:
    raise UserError(
      f"the channels of {op.name!r} cannot be removed: {why}; expected a convolution, or a dot with a kernel of "
      "one axis of outputs"
    )
  return axes[0]


def kept_indices(name: str, given: Any, count: int) -> list[int]:
  """What is kept of a site's channels as indices.

  Args:
    name: the site's.
    given: indices, or a mask with a bool for each channel; a sequence or an array of numpy or jax.
    count: of the channels.

  Raises:
    UserError: it is neither.
  """
  array = np.asarray(given)
  if array.dtype == bool and array.shape == (count,):
    array = np.flatnonzero(array)
  whole = array.ndim == 1 and array.size and array.dtype.kind in "iu"
  if not whole or np.any(np.diff(array.astype(np.int64)) <= 0) or not 0 <= array[0] <= array[-1] < count:
    raise UserError(
      f"the kept channels of {name!r} have to be ascending indices below {count}, got {array.tolist()} (or {count} "
      "bools, of which one at least is true)"
    )
  return [int(i) for i in array]


def sizes_of(analysis: Analysis, keep: Keep) -> Sizes:
  """The sizes of a program of which these channels are kept, by name of the site.

  Raises:
    UserError: an unknown site, an index out of range or twice, or channels that cannot be followed to their readers.
  """
  sites = {s.op.name: s for s in analysis.sites[:-1]}
  seeds: dict[Axis, tuple[str, Sequence[int]]] = {}
  if not isinstance(keep, Mapping):
    raise UserError(f"what is kept is {keep!r}; expected a dict of channels by the site's name")
  for name, given in keep.items():
    if name not in sites:
      raise unknown("site", name, [s.op.name for s in sites.values() if s.op.kernel_index is not None])
    number, axis = sites[name].node.outputs[0], _channel_axis(sites[name])
    indices = kept_indices(name, given, analysis.program.avals[number].shape[axis])
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
    variables: a tree of arrays; what comes back has the same containers.
    keep: ascending indices of the kept channels by the site's name, or a mask of bools; sites joined by a residual are
      cut alike.
    *inputs: an example.

  Returns:
    `(fn2, variables2, edits)`: `fn2(variables2, *inputs)` with smaller leaves; `edit(fn, edits, variables)` is fn2
    again.
  """
  from leanax.graph.edit import edit

  analysis = Analysis(read(fn, variables, *inputs))
  sizes, leaves = sizes_of(analysis, keep), jax.tree.leaves(variables)
  small = [sizes.take(number, leaf) for number, leaf in zip(analysis.program.body.inputs, leaves, strict=False)]
  edits = [{"edit": "keep_channels", "keep": {name: sizes.kept_of[name] for name in keep}}]
  leaves_by_name(variables)  # the edited function finds them by name
  return edit(fn, edits, structs(variables)), jax.tree.structure(variables).unflatten(small), edits


def run(analysis: Analysis, keep: Keep, values: Sequence[Any]) -> list[Any]:
  """The outputs of the cut program on small variables and whole inputs."""
  sizes, body = sizes_of(analysis, keep), analysis.program.body
  for number, value, name in zip(body.inputs, values, analysis.program.leaves, strict=False):
    if jnp.shape(value) != sizes.shape(number):
      raise UserError(f"{name!r} has the shape {jnp.shape(value)}, expected {sizes.shape(number)} of the cut model")
  return sizes.emitter().run(body, values, {})[0]
