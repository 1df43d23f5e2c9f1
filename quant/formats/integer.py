"""Integers: evenly spaced levels (Jacob et al., arXiv:1712.05877, section 2.1).

    q = clip(round_half_even(u) + z),   u' = q - z

Inside is what rounds to a code within the ends.
"""

import jax
import jax.numpy as jnp
import numpy as np

from quant.formats.base import Ends, Format


def integer() -> Format:
  """All whole numbers within the ends."""
  return Format(_encode, _decode, _levels)


def rounded(u: jax.Array, zero_point: jax.Array) -> jax.Array:
  """Codes before they are clipped."""
  return jnp.round(u) + zero_point


def _encode(u: jax.Array, zero_point: jax.Array, ends: Ends) -> tuple[jax.Array, jax.Array]:
  raw = rounded(u, zero_point)
  q = jnp.clip(raw, *ends)
  return q, raw == q


def _decode(codes: jax.Array, zero_point: jax.Array, ends: Ends) -> jax.Array:
  del ends
  return codes - zero_point


def _levels(ends: Ends) -> np.ndarray:
  return np.arange(ends[0], ends[1] + 1, dtype=np.float64)
