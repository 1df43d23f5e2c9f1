"""The order in which Flax has the entries of PyTorch's arrays, read from how the model's function reads its kernels.

A kernel is (out, in, *spatial) in torch and (*spatial, in, out) in Flax. Two things are not in its name or its shape. A
transposed convolution has (in, out, *spatial) in torch, and takes its windows in the other direction. And a dense layer
behind flattened images reads them as (channels, height, width) in torch, but as (height, width, channels) in Flax.
Both are seen in the traced function, so that no square kernel is loaded the wrong way round.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from leanax import graph


class Layout(NamedTuple):
  """How a model reads its kernels, by their names without "params/".

  Attributes:
    transposed: those of transposed convolutions that take their windows as a convolution does.
    flattened: of dense kernels that read several axes as one, the sizes of these, the channels last; () where it is
      not known which are channels.
  """

  transposed: frozenset[str]
  flattened: Mapping[str, tuple[int, ...]]


def layout(fn: Callable[..., Any], variables: Any, *inputs: Any) -> Layout:
  """Returns how `fn(variables, *inputs)` reads its kernels; arrays or shapes, nothing is run."""
  sites = graph.trace(fn, variables, *inputs).sites.values()
  flattened = {}
  for leaf, axes in graph.axis_parts(fn, variables, *inputs).items():
    sizes = _channels_last(axes[0]) if len(axes) == 2 else None
    if sizes is not None:
      flattened[leaf.removeprefix("params/")] = sizes
  return Layout(frozenset(filter(None, map(_transposed, sites))), flattened)


def in_flax(array: np.ndarray, leaf: str, shape: tuple[int, ...], known: Layout) -> np.ndarray:
  """Returns an array of torch in the order of Flax; that of an array of another size does not matter.

  Args:
    array: as torch has it.
    leaf: the name of its leaf; all but kernels are the same in both.
    shape: the leaf's.
    known: how the model reads its kernels.
  """
  if not is_kernel(leaf) or array.ndim < 2:
    return array
  spatial = tuple(range(2, array.ndim))
  if spatial and leaf in known.transposed:
    return np.flip(array.transpose(*spatial, 0, 1), tuple(range(len(spatial))))
  sizes = known.flattened.get(leaf, ())
  if sizes and array.shape == tuple(shape[::-1]):
    parts = array.reshape(-1, sizes[-1], *sizes[:-1])
    array = np.moveaxis(parts, 1, -1).reshape(array.shape)
  return array.transpose(*spatial, 1, 0)


def is_kernel(leaf: str) -> bool:
  """Returns whether a leaf is a kernel by its name."""
  return leaf.rpartition("/")[2] == "kernel"


def _transposed(site: graph.Op) -> str | None:
  """Returns the kernel of a transposed convolution: it spreads its input, or has the name of linen's class."""
  if "lhs_dilation" not in site.params or site.kernel_index is None:
    return None
  kernel = site.inputs[site.kernel_index]
  if kernel.leaf is None or kernel.view is None:
    return None
  if any(digit.stride < 0 for axis in kernel.view.axes for digit in axis):
    return None  # with transpose_kernel=True Flax turns the kernel as torch does
  spreads = any(step != 1 for step in site.params["lhs_dilation"])
  named = any(part.startswith("ConvTranspose") for part in kernel.leaf.split("/"))
  return kernel.leaf.removeprefix("params/") if spreads or named else None


def _channels_last(axis: graph.Made) -> tuple[int, ...] | None:
  """Returns the sizes of the parts of a dense kernel's input, the channels last; () where that is not known.

  Positions are told from channels by what they went through, such as a convolution or a pool, which channels pass.
  None where torch has the same order: of one part, of channels first, and of heads and what each of them has.
  """
  plain = [place for place, lost in enumerate(axis.lost) if not lost]
  several = sum(size > 1 for size in axis.sizes)
  if several < 2 or plain == [0] or (len(plain) == len(axis.sizes) == 2):
    return None
  if plain == [len(axis.sizes) - 1]:
    return axis.sizes
  return ()
