"""A histogram whose bins are fixed before anything is seen: the float32 numbers with equal sign, exponent and first 5
bits of the fraction, 2^14 bins, each at most 1/32 of its values wide.

So counts of batches and devices add up exactly, in any order. A count stops at 2^32 - 1.
"""

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core import axis
from leanax.graph.kinds import Statistic

_BITS = 14
_SHIFT = 32 - _BITS
COUNTS = "float_histogram"


def float_histogram() -> Statistic:
  """Returns the number of values in each bin: (2^14,), uint32."""

  def update(bins: jax.Array, x: jax.Array, axis_name: str | None) -> jax.Array:
    batch = jnp.zeros_like(bins).at[bin_of(x).reshape(-1)].add(1)
    return _add(bins, axis.psum(batch, axis_name))

  return Statistic(COUNTS, lambda x: jnp.zeros(2**_BITS, jnp.uint32), update, _add, np.asarray)


def _add(a: jax.Array, b: jax.Array) -> jax.Array:
  total = a + b
  return jnp.where(total < a, jnp.uint32(2**32 - 1), total)


def bin_of(x: jax.Array) -> jax.Array:
  """Returns the place of float32 numbers among the bins, in their order."""
  pattern = jax.lax.bitcast_convert_type(x.astype(jnp.float32) + 0.0, jnp.uint32)
  ordered = jnp.where(pattern >> 31 == 1, ~pattern, pattern | jnp.uint32(2**31))
  return (ordered >> _SHIFT).astype(jnp.int32)


def edges() -> np.ndarray:
  """Returns the least number of each bin, and one behind the last: (2^14 + 1,), finite float32."""
  ordered = np.minimum(np.arange(2**_BITS + 1, dtype=np.uint64) << _SHIFT, 2**32 - 1).astype(np.uint32)
  pattern = np.where(ordered >> 31 == 1, ordered & np.uint32(2**31 - 1), ~ordered)
  found, largest = pattern.view(np.float32), np.finfo(np.float32).max
  return np.where(np.isfinite(found), found, np.where(ordered >> 31 == 1, largest, -largest))
