"""Sums over many batches that keep their digits in 32 bits: counts in two words, and compensated floats.

A sum of float32 numbers stops growing near 2^24 times its terms. Here the rounding error of each addition is found
exactly (Knuth, The Art of Computer Programming, volume 2, section 4.2.2, theorem B) and kept beside the sum.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Count(NamedTuple):
  """A whole number below 2^64: `high` * 2^32 + `low`, both uint32."""

  high: jax.Array
  low: jax.Array


class Total(NamedTuple):
  """A sum: `high` + `low`, both float32, of which `low` holds what `high` lost by rounding."""

  high: jax.Array
  low: jax.Array


def no_count(shape: tuple[int, ...] = ()) -> Count:
  """Returns zeros."""
  return Count(jnp.zeros(shape, jnp.uint32), jnp.zeros(shape, jnp.uint32))


def no_total(shape: tuple[int, ...] = ()) -> Total:
  """Returns zeros."""
  return Total(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))


def add_counts(a: Count, b: Count) -> Count:
  """Adds two counts, exactly."""
  low = a.low + b.low  # wraps round
  return Count(a.high + b.high + (low < b.low).astype(jnp.uint32), low)


def counted(n: Any) -> Count:
  """Returns the count of a number below 2^32."""
  low = jnp.asarray(n, jnp.uint32)
  return Count(jnp.zeros_like(low), low)


def add(total: Total, x: jax.Array) -> Total:
  """Adds one more term, float32. A sum that is not finite stays so: infinity or NaN."""
  high = total.high + x
  new = high - total.high
  lost = (total.high - (high - new)) + (x - new)
  return Total(high, total.low + jnp.where(jnp.isfinite(high), lost, jnp.zeros_like(lost)))


def add_totals(a: Total, b: Total) -> Total:
  """Adds two sums."""
  return add(add(a, b.high), b.low)


def whole(count: Count) -> np.ndarray:
  """Returns a count as numpy's uint64."""
  return (np.asarray(count.high).astype(np.uint64) << np.uint64(32)) + np.asarray(count.low).astype(np.uint64)


def real(total: Total) -> np.ndarray:
  """Returns a sum as numpy's float64."""
  return np.asarray(total.high, np.float64) + np.asarray(total.low, np.float64)


def mean(total: Total, count: Count) -> np.ndarray:
  """Returns the quotient in float64; NaN where nothing was counted."""
  with np.errstate(all="ignore"):
    return real(total) / whole(count).astype(np.float64)
