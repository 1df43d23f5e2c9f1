"""Floats of 8 bits, E4M3 (Micikevicius et al., "FP8 Formats for Deep Learning", arXiv:2209.05433, section 3).

    levels ±m 2^(e-3),   m = 8, ..., 15 and e = -6, ..., 8, but 480;   ±m 2^-9,   m = 0, ..., 7

The scale is the largest level over 448, so that u is within ±448. A number goes to the nearest level, from the middle
of two to the even one, beyond ±448 to ±448, and passes its gradient up to there. The code of the k-th level above 0 is
k, its bits without the sign. Where we differ: no code is NaN, and 0 has one sign.
"""

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core.errors import UserError
from quant.formats.base import Ends, Format

_MOST = 126  # the code of 448; 127 is NaN
_LARGEST = 448.0


def fp8_e4m3() -> Format:
  """Zero and floats of both signs with 4 bits of exponent and 3 of fraction."""
  return Format(_encode, _decode, _levels, widths=(8,))


def _encode(u: jax.Array, zero_point: jax.Array, ends: Ends) -> tuple[jax.Array, jax.Array]:
  del ends
  size = jnp.minimum(jnp.abs(u), _LARGEST)
  exponent = jnp.maximum(jnp.frexp(size)[1] - 1, -6)
  place = 8 * (exponent + 6).astype(u.dtype) + jnp.round(jnp.ldexp(size, 3 - exponent))
  return jnp.sign(u) * place + zero_point, jnp.abs(u) <= _LARGEST


def _decode(codes: jax.Array, zero_point: jax.Array, ends: Ends) -> jax.Array:
  del ends
  place = codes - zero_point
  place = place if jnp.issubdtype(place.dtype, jnp.floating) else place.astype(jnp.float32)
  binade = jnp.maximum(jnp.floor(jnp.abs(place) / 8) - 1, 0)
  return jnp.sign(place) * jnp.ldexp(jnp.abs(place) - 8 * binade, binade.astype(jnp.int32) - 9)


def _levels(ends: Ends) -> np.ndarray:
  if ends != (-127, 127):
    raise UserError(f"fp8_e4m3 with the codes {ends[0]} to {ends[1]}; expected a narrow signed grid of 8 bits")
  place = np.arange(-_MOST, _MOST + 1)
  binade = np.maximum(np.abs(place) // 8 - 1, 0)
  return np.sign(place) * np.ldexp(np.float64(np.abs(place) - 8 * binade), binade - 9)
