"""Number grids: real values as small integers, and the rounding that training simulates.

    q = clip(round_half_even(x * (1 / s)) + z, qmin, qmax),   x̂ = s * (q - z)

Sources: the affine grid of Jacob et al. (arXiv:1712.05877) and Nagel et al. (arXiv:2106.08295). The range always
contains 0, and 0 is exact, so a pruned weight stays zero. Symmetric grids are narrow by default, ±(2^(b-1) - 1): the
largest value then falls on a code and not on a tie, and negation is exact. We multiply by the reciprocal because XLA
and the runtimes do so whether one writes a division or not; written out, the codes are the same in every program.

Gradients are straight-through with the clip mask: 1 where the rounded code is inside the grid, else 0. (LSQ takes its
mask before rounding; here the ends of an observed range, the largest weight of each channel among them, keep their
gradient.)
"""

import dataclasses
import functools
import numbers
from typing import Any

import jax
import jax.numpy as jnp

from leanax.core.errors import UserError
from leanax.core.methods import method
from quant import formats
from quant.formats import Format

WIDTHS = (2, 3, 4, 5, 6, 7, 8, 16)

# A channel far below its layer's largest (all zero, or scaled away by a folded batch norm) gets this share of the
# largest channel's step, so that its int32 bias at s_x * s_w neither overflows nor loses its resolution.
CHANNEL_FLOOR = 2.0**-12


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Grid:
  """The values that a tensor may hold; a pytree whose leaves are `scale` and `zero_point`.

  Attributes:
    scale: the step, positive: () or (channels,) along `axis`, with several axes one for each combination. Without axes
      it has the array's rank, and each number of it serves a block: (3, 5) of a kernel (12, 5) groups of 4 inputs.
    zero_point: int32, the code of 0, of the scale's shape or ().
    bits: width, one of `WIDTHS`.
    signed: codes are two's complement; otherwise they start at 0.
    narrow: a signed grid leaves out its lowest code, so that it is symmetric.
    axis: the channels' axis for a vector scale, a tuple for a scale of several axes, None for one scale.
    shape: what `axis` counts: the shape of what is rounded, perhaps with an axis split in two or more (10 as 2, 5).
      None: any shape that has the axis.
    format: the levels, in steps of the scale: a name in `quant.formats`, integers unless told otherwise. Others than
      integers have the zero point 0.
  """

  scale: jax.Array
  zero_point: jax.Array
  bits: int = dataclasses.field(metadata={"static": True})
  signed: bool = dataclasses.field(default=True, metadata={"static": True})
  narrow: bool = dataclasses.field(default=False, metadata={"static": True})
  axis: int | tuple[int, ...] | None = dataclasses.field(default=None, metadata={"static": True})
  shape: tuple[int, ...] | None = dataclasses.field(default=None, metadata={"static": True})
  format: str = dataclasses.field(default="integer", metadata={"static": True})

  @property
  def qmin(self) -> int:
    return limits(self.bits, self.signed, self.narrow)[0]

  @property
  def qmax(self) -> int:
    return limits(self.bits, self.signed, self.narrow)[1]

  @property
  def ends(self) -> tuple[int, int]:
    """The lowest and the highest code."""
    return limits(self.bits, self.signed, self.narrow)

  @property
  def levels(self) -> tuple[float, ...]:
    """All values over the scale, ascending, where the zero point is 0."""
    return tuple(_format(self.format).levels(self.ends).tolist())


@functools.cache
def _format(name: str) -> Format:
  return method(formats, name)()


def limits(bits: int, signed: bool = True, narrow: bool = False) -> tuple[int, int]:
  """Returns the lowest and the highest code of a grid.

  Raises:
    UserError: a width that is not served, or an unsigned narrow grid.
  """
  if not isinstance(bits, numbers.Integral) or bits not in WIDTHS:
    raise UserError(f"a grid of {bits!r} bits is not served; expected one of {', '.join(map(str, WIDTHS))}")
  if not signed:
    if narrow:
      raise UserError("an unsigned grid has no narrow range; expected signed=True or narrow=False")
    return 0, 2**bits - 1
  return -(2 ** (bits - 1)) + int(narrow), 2 ** (bits - 1) - 1


def symmetric(
  largest: jax.Array,
  bits: int,
  *,
  narrow: bool = True,
  axis: int | tuple[int, ...] | None = None,
  layers: tuple[int, ...] = (),
  format: str = "integer",
) -> Grid:
  """Returns the grid with zero point 0 whose highest level is `largest`, a magnitude: () or (channels,).

  The lowest code of a grid that is not narrow lies one step beyond -largest. Channels far below the largest get
  `CHANNEL_FLOOR` of its step, and a tensor of zeros gets the range 1. `layers` are axes of `largest` that number
  layers, which are floored apart. `format` is a name in `quant.formats`.
  """
  qmax = float(_format(format).levels(limits(bits, True, narrow))[-1])
  scale = _positive(largest) * (1 / qmax)  # not divided: XLA would do so in some programs only
  if scale.ndim:
    channels = tuple(i for i in range(scale.ndim) if i not in layers)
    scale = jnp.maximum(scale, jnp.max(_floored(largest), channels, keepdims=True) * (CHANNEL_FLOOR / qmax))
  return Grid(scale, jnp.zeros(scale.shape, jnp.int32), bits, True, narrow, axis, None, format)


def affine(
  low: jax.Array, high: jax.Array, bits: int, *, signed: bool = True, axis: int | tuple[int, ...] | None = None
) -> Grid:
  """Returns the grid over [low, high], widened to contain 0; both are () or (channels,).

  A range above 0 (after a ReLU) has its zero point at the lowest code. The rounded zero point moves the ends by at most
  half a step. An empty range gets the length 1; where low is above high, or one of them not finite, the scale is NaN.
  """
  qmin, qmax = limits(bits, signed)
  low = jnp.where(low > high, jnp.nan, low)
  low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
  scale = _positive(high - low) * (1 / (qmax - qmin))
  zero_point = jnp.clip(qmin - jnp.round(low / scale), qmin, qmax).astype(jnp.int32)
  return Grid(scale, zero_point, bits, signed, False, axis)


def _positive(extent: jax.Array) -> jax.Array:
  """Returns the extent, or 1 where it is zero: any step serves zeros. Negative and infinite become NaN."""
  extent = jnp.asarray(extent)
  extent = jnp.where(jnp.isfinite(extent) & (extent >= 0), extent, jnp.full_like(extent, jnp.nan))
  return jnp.where(extent == 0, jnp.ones_like(extent), _floored(extent))


def _floored(extent: jax.Array) -> jax.Array:
  # Far above the smallest normal number, so that neither the step nor its reciprocal leaves the normal range.
  return jnp.maximum(extent, jnp.asarray(1e-30, extent.dtype))


def broadcast(values: jax.Array, ndim: int, axis: int | tuple[int, ...] | None) -> jax.Array:
  """Values along `axis` (ascending, if several) as an array of `ndim` axes that broadcasts; a scalar as it is."""
  if values.ndim == 0:
    return values
  if axis is None:
    raise UserError(f"a grid with {values.size} scales needs the axis that they lie along")
  axes = (axis,) if isinstance(axis, int) else axis
  if len(axes) != values.ndim or any(not -ndim <= a < ndim for a in axes):
    raise UserError(f"a grid of {values.ndim} axes of scales along {axis} does not fit what has {ndim} axes")
  shape = [1] * ndim
  for place, length in zip(axes, values.shape, strict=True):
    shape[place] = length
  return values.reshape(shape)


def _in_blocks(x: jax.Array, grid: Grid) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns an array with each axis split into as many blocks as the scale has numbers there."""
  blocks = grid.scale.shape
  if any(length % max(n, 1) for length, n in zip(x.shape, blocks, strict=True)):
    raise UserError(f"a grid with scales of shape {blocks} was given the shape {x.shape}, which they do not divide")
  zero_point = jnp.broadcast_to(grid.zero_point, blocks)
  wide = tuple(n for size in blocks for n in (size, 1))
  split = tuple(n for length, size in zip(x.shape, blocks, strict=True) for n in (size, length // max(size, 1)))
  return x.reshape(split), grid.scale.reshape(wide), zero_point.reshape(wide)


def laid_out(x: jax.Array, grid: Grid) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the array in the shape that the grid's axes count, with scale and zero point that broadcast to it."""
  if grid.shape is not None:
    if not splits(x.shape, grid.shape):
      raise UserError(
        f"a grid written for the shape {grid.shape} was given an array of shape {x.shape}; expected the leaf itself, "
        "not transposed or sliced, or, of a kernel that is computed, the operand as its site reads it"
      )
    x = x.reshape(grid.shape)
  elif grid.axis is None and grid.scale.ndim and grid.scale.ndim == x.ndim:
    return _in_blocks(x, grid)
  scale, zero_point = (broadcast(v, x.ndim, grid.axis) for v in (grid.scale, grid.zero_point))
  if scale.ndim and any(n not in (1, length) for n, length in zip(scale.shape, x.shape, strict=True)):
    raise UserError(f"a grid with scales of shape {grid.scale.shape} along {grid.axis} was given the shape {x.shape}")
  return x, scale, zero_point


def splits(shape: tuple[int, ...], finer: tuple[int, ...]) -> bool:
  """Returns whether `finer` is `shape` with some axes split into neighbours."""
  left = list(finer)
  for length in shape:
    part = left.pop(0) if left else 0
    while left and part < length:
      part *= left.pop(0)
    if part != length:
      return False
  return not left


def compute_dtype(x: jax.Array, scale: jax.Array) -> Any:
  """Returns the type in which a tensor is divided by its scale: the wider of the two."""
  return max((x.dtype, scale.dtype), key=lambda dtype: jnp.finfo(dtype).bits)


def steps(x: jax.Array, scale: jax.Array) -> jax.Array:
  """Returns `x` in steps of the grid, not rounded: x * (1 / s) in the wider type of the two."""
  dtype = compute_dtype(x, scale)
  # The barrier keeps XLA from folding the reciprocal of a constant, or of an exponential, into another rounding.
  scale = jax.lax.optimization_barrier(scale.astype(dtype))
  return x.astype(dtype) * (1 / scale)


def floats(what: str, x: Any) -> jax.Array:
  """Returns `x` as an array, refused where it holds no floats."""
  x = jnp.asarray(x)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise UserError(f"{what} of an array of {x.dtype}; expected floats")
  return x


def codes(x: jax.Array, grid: Grid) -> jax.Array:
  """Returns the integer codes of `x`, int32, of its shape.

  A kernel's grid from `Quantized.grids` is for the leaf, as the variables hold it, however the model turns it.

  Raises:
    UserError: `x` is not of the shape that the grid is written for, is no array of floats, or it or the scale holds NaN
      (inside jit NaN has the code of 0).
  """
  x = floats("codes", x)
  laid, scale, zero_point = laid_out(x, grid)
  if not isinstance(laid, jax.core.Tracer) and not isinstance(scale, jax.core.Tracer):
    bad = next((what for what, v in (("array", laid), ("grid's scale", scale)) if jnp.any(jnp.isnan(v))), None)
    if bad is not None:
      raise UserError(f"codes of NaN: the {bad} holds NaN, which is no number on a grid")
  u = steps(laid, scale)
  return _format(grid.format).encode(u, zero_point.astype(u.dtype), grid.ends)[0].astype(jnp.int32).reshape(x.shape)


def dequantize(q: jax.Array, grid: Grid, dtype: Any = None) -> jax.Array:
  """Returns the real values of integer codes, s * (q - z), in `dtype` (default: the scale's); shapes as of `codes`."""
  laid, scale, zero_point = laid_out(q, grid)
  levels = _format(grid.format).decode(laid.astype(jnp.int32), zero_point, grid.ends)
  values = (scale * levels.astype(scale.dtype)).reshape(q.shape)
  return values if dtype is None else values.astype(dtype)


def fake_quant(x: jax.Array, grid: Grid) -> jax.Array:
  """Rounds `x` to the grid, in its own type and shape; the gradient is straight-through for `x`, none for the grid."""
  x = floats("values on a grid", x)
  laid, scale, zero_point = laid_out(x, grid)
  return round_to(grid.ends, laid, scale, zero_point, grid.format).reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4))
def round_to(
  ends: tuple[int, int], x: jax.Array, scale: jax.Array, zero_point: jax.Array, format: str = "integer"
) -> jax.Array:
  """Returns `fake_quant` between any two codes, for a scale and an int32 zero point that broadcast against `x`."""
  return _round_forward(ends, x, scale, zero_point, format)[0]


def _round_forward(ends, x, scale, zero_point, format):
  steps, (inside, _) = _steps_forward(ends, x, scale, zero_point, format)
  return (scale.astype(steps.dtype) * steps).astype(x.dtype), inside


def _round_backward(ends, format, inside, cotangent):
  del ends, format
  return jnp.where(inside, cotangent, jnp.zeros_like(cotangent)), None, None


round_to.defvjp(_round_forward, _round_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4))
def steps_to(
  ends: tuple[int, int], x: jax.Array, scale: jax.Array, zero_point: jax.Array, format: str = "integer"
) -> jax.Array:
  """Returns the values of `round_to` in steps of the scale, in the wider type of the two; integers less the zero point.

  A cotangent is taken for one of the values that `round_to` returns: the caller multiplies by the scale.
  """
  return _steps_forward(ends, x, scale, zero_point, format)[0]


def _steps_forward(ends, x, scale, zero_point, format):
  levels, u = _format(format), steps(x, scale)
  zero_point = zero_point.astype(u.dtype)
  q, inside = levels.encode(u, zero_point, ends)
  # The empty array tells the type that the cotangent is to have.
  return levels.decode(q, zero_point, ends), (inside, jnp.zeros((0,), x.dtype))


def _steps_backward(ends, format, saved, cotangent):
  inside, like = saved
  return _round_backward(ends, format, inside, cotangent.astype(like.dtype))


steps_to.defvjp(_steps_forward, _steps_backward)
