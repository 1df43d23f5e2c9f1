"""The operand that a site multiplies by its kernel, as rows: a dot's in two axes, a convolution's as patches."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core.errors import UserError
from leanax.graph.ops import Op


def refusal(op: Op) -> str:
  """Returns why a site is no product of rows with a kernel; "" where it is one."""
  if op.kind not in ("dot", "conv"):
    return f"it is of the kind {op.kind!r}"
  if op.kernel_index is None:
    return "it multiplies two activations"
  if op.kind == "conv" and op.kernel_index == 0:
    return "its image is a parameter, and its kernel is not"
  if op.kind == "conv" and op.params["batch_group_count"] != 1:
    return "it convolves groups of its batch"
  return ""


def rows(op: Op, x: jax.Array) -> jax.Array:
  """Returns the rows that a site multiplies by its kernel, so that `rows @ matrix.T` holds the numbers of its output.

  Args:
    op: a dot or a convolution with a kernel.
    x: its other operand; of any batch size.

  Returns:
    (groups, positions, in) of x's type. For a dot the groups are its batch axes, and `in` the summed axes in the order
    of the equation. For a convolution they are its feature groups, and `in` is the group's input channels times the
    places of the kernel, channels slowest; padding, and zeros between the entries of a dilated input, are among them.

  Raises:
    UserError: the operation is no such product.
  """
  why = refusal(op)
  if why:
    raise UserError(f"{op.name!r} multiplies no rows by a kernel: {why}")
  if op.kind == "conv":
    return _patches(op, x)
  kernel = op.kernel_index or 0
  contract, batch = (sides[1 - kernel] for sides in op.params["dimension_numbers"])
  free = [axis for axis in range(x.ndim) if axis not in contract and axis not in batch]
  sizes = [math.prod(x.shape[axis] for axis in axes) for axes in (batch, free, contract)]
  return x.transpose(*batch, *free, *contract).reshape(sizes)


def _patches(op: Op, x: jax.Array) -> jax.Array:
  """Returns windows taken out of the padded image, one spatial axis after the other; a gather rounds nothing."""
  params, groups = op.params, op.params["feature_group_count"]
  spec, kernel = params["dimension_numbers"], op.inputs[1].shape
  x = x.transpose(spec.lhs_spec)
  pads = [(low, high, step - 1) for (low, high), step in zip(params["padding"], params["lhs_dilation"], strict=True)]
  x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *pads])
  for place, (stride, step) in enumerate(zip(params["window_strides"], params["rhs_dilation"], strict=True)):
    axis, size = 2 + 2 * place, kernel[spec.rhs_spec[2 + place]]
    count = max(0, (x.shape[axis] - (size - 1) * step - 1) // stride + 1) if size else 0
    windows = stride * np.arange(count)[:, None] + step * np.arange(size)
    x = jnp.take(x, windows.astype(np.int32), axis=axis, mode="clip")
  batch, channels, *spatial = x.shape
  x = x.reshape(batch, groups, channels // groups, *spatial)
  outer, inner = range(3, x.ndim, 2), range(4, x.ndim, 2)
  sizes = (groups, batch * math.prod(spatial[::2]), channels // groups * math.prod(spatial[1::2]))
  return x.transpose(1, 0, *outer, 2, *inner).reshape(sizes)
