"""Powers of two and zero: products are shifts (Li et al., APoT, arXiv:1909.13144, equation 3; Zhou et al., INQ,
arXiv:1702.03044, section 3.1).

    levels 0, ±1, ±1/2, ±1/4, ... down to ±2^(1 - m),   m = 2^(b-1) - 1

The scale is the largest level, so that u is within ±1. A number goes to the nearest level, from the middle of two to
the smaller, and passes its gradient up to |u| = 1. The code of ±2^(k-m) is ±k. Where we differ: the equation of APoT
has one magnitude more, 2^b + 1 levels, which b bits cannot number; the scale of INQ is a power of two itself.
"""

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core.errors import UserError
from quant.formats.base import Ends, Format

_MOST = 63  # of 7 bits: below, float32 would hold levels times scales as zero


def power_of_two() -> Format:
  """Zero and powers of two of both signs."""
  return Format(_encode, _decode, _levels, widths=(2, 3, 4, 5, 6, 7))


def _magnitudes(ends: Ends) -> np.ndarray:
  """Returns 0 and the powers of two, ascending; their places are the codes."""
  if ends[0] != -ends[1] or ends[1] > _MOST:
    raise UserError(
      f"powers of two with the codes {ends[0]} to {ends[1]}; expected a narrow signed grid of 2 to 7 bits"
    )
  return np.append(0.0, 2.0 ** np.arange(1 - ends[1], 1))


def _encode(u: jax.Array, zero_point: jax.Array, ends: Ends) -> tuple[jax.Array, jax.Array]:
  magnitudes, size = _magnitudes(ends), jnp.abs(u)
  middles = jnp.asarray((magnitudes[1:] + magnitudes[:-1]) / 2, u.dtype)
  place = jnp.searchsorted(middles, size, side="left").astype(u.dtype)
  return jnp.sign(u) * place + zero_point, size <= 1


def _decode(codes: jax.Array, zero_point: jax.Array, ends: Ends) -> jax.Array:
  place = codes - zero_point
  dtype = place.dtype if jnp.issubdtype(place.dtype, jnp.floating) else jnp.float32
  levels = jnp.asarray(_magnitudes(ends), dtype)
  return jnp.sign(place).astype(dtype) * levels[jnp.abs(place).astype(jnp.int32)]


def _levels(ends: Ends) -> np.ndarray:
  magnitudes = _magnitudes(ends)
  return np.concatenate([-magnitudes[:0:-1], magnitudes])
