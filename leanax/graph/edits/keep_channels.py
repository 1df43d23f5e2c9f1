"""Edit: channels physically removed, {"edit": "keep_channels", "keep": {site: indices}}.

What comes out is what the original returns when those who read the removed channels give them the weight zero.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from leanax.core.errors import UserError, unknown
from leanax.graph.affine import out_axes
from leanax.graph.edits.kind import Edit, Editable, as_array, check_net
from leanax.graph.program import read
from leanax.graph.retrace import retrace
from leanax.graph.shapes import leaves_by_name
from leanax.graph.sites import Analysis, Site
from leanax.graph.sizes import Axis, Sizes

N = TypeVar("N", bound=Editable)
Keep = Mapping[str, Any]


def keep_channels(net: N, keep: Keep) -> N:
  """Removes all channels but some from the outputs of sites, and from everything that goes with them.

  What comes out is what the original returns when those who read the removed channels give them the weight zero.

  Args:
    net: of variables in any containers; what comes back has the same.
    keep: ascending indices of the kept channels by the site's name, or a mask of bools; sites joined by a residual are
      cut alike.

  Returns:
    The net with smaller leaves.

  Raises:
    UserError: an unknown site, an index out of range or twice, or channels that cannot be followed to their readers.
  """
  check_net(net)
  sizes = Sizes(Analysis(read(net.infer, net.variables, *net.example)))
  kept = _keep(sizes, keep)
  leaves_by_name(net.variables)  # the edited function finds them by name
  return net.edited([{"edit": "keep_channels", "keep": kept}], sizes.leaves(net.variables))


def apply(fn: Callable[..., Any], edits: Sequence[Edit], shapes: Any) -> Callable[..., Any]:
  """Returns the function of the smaller variables; each edit's indices are those after the edits before it."""

  def smaller(variables: Any, *inputs: Any) -> Any:
    traced = retrace(fn, shapes, variables, inputs)
    return traced.output(_sizes(traced.analysis, edits).run(traced.values))

  return smaller


def after(fn: Callable[..., Any], edits: Sequence[Edit], shapes: Any, inputs: tuple[Any, ...]) -> Any:
  """Returns the shapes of the smaller variables."""
  return _sizes(Analysis(read(fn, shapes, *inputs)), edits).leaves(shapes)


def joins(edits: Sequence[Edit], other: Edit) -> bool:
  """Returns whether these edits and the next one are applied in one trace: always."""
  del edits, other
  return True


def _sizes(analysis: Analysis, edits: Sequence[Edit]) -> Sizes:
  sizes = Sizes(analysis)
  for one in edits:
    _keep(sizes, one["keep"])
  return sizes


def _keep(sizes: Sizes, keep: Keep) -> dict[str, list[int]]:
  """Keeps these channels by the site's name; returns them as indices."""
  sites = {s.op.name: s for s in sizes.analysis.sites[:-1]}
  kept: dict[Axis, tuple[str, Sequence[int]]] = {}
  if not isinstance(keep, Mapping):
    raise UserError(f"what is kept is {keep!r}; expected a dict of channels by the site's name")
  for name, given in keep.items():
    if name not in sites:
      raise unknown("site", name, [s.op.name for s in sites.values() if s.op.kernel_index is not None])
    number, axis = sites[name].node.outputs[0], _channel_axis(sites[name])
    kept[(number, axis)] = (name, kept_indices(name, given, sizes.shape(number)[axis]))
  sizes.keep(kept)
  return {name: list(indices) for name, indices in kept.values()}


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
  """Returns what is kept of a site's channels as indices.

  Args:
    name: the site's.
    given: indices, or a mask with a bool for each channel; a sequence or an array of numpy or jax.
    count: of the channels.

  Raises:
    UserError: it is neither.
  """
  array = as_array(given)
  if array.dtype == bool and array.shape == (count,):
    array = np.flatnonzero(array)
  whole = array.ndim == 1 and array.size and array.dtype.kind in "iu"
  if not whole or np.any(np.diff(array.astype(np.int64)) <= 0) or not 0 <= array[0] <= array[-1] < count:
    raise UserError(
      f"the kept channels of {name!r} have to be ascending indices below {count}, got {array.tolist()} (or {count} "
      "bools, of which one at least is true)"
    )
  return [int(i) for i in array]
