"""Percentile observer: the range without a share of the values at each end (Wu et al., arXiv:2004.09602, section 3.3).

The share is one of all values of all batches, from a histogram whose bins are fixed: the float32 numbers with equal
sign, exponent and first 5 bits of the fraction, 2^14 bins, each at most 1/32 of its values wide. So counts of batches
and devices add up exactly, in any order, and no bin must be known before. Within a bin values are taken as evenly
spread. The ends stay within the lowest and the highest value seen: percentile 100 is `min_max`.

Where we differ: the paper takes the percentile of magnitudes, for symmetric grids; here each end loses the share of
values beyond it, for affine ones. A count stops at 2^32 - 1.
"""

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core import axis, ranges
from leanax.graph.kinds import Statistic
from leanax.graph.statistics import extrema
from quant.observers.base import Observer, Stats

_BITS = 14
_SHIFT = 32 - _BITS
_COUNTS = "float_histogram"


def percentile(q: float = 99.99) -> Observer:
  """The range between the (100 - q)-th and the q-th percentile of everything seen.

  Args:
    q: above 50, at most 100.
  """
  ranges.check("percentile: q", q, ranges.Range("a number above 50 and at most 100", lambda q: 50 < q <= 100))
  return Observer((extrema(), float_histogram()), lambda stats, bits: _range(stats, 1 - q / 100))


def float_histogram() -> Statistic:
  """The number of values in each bin: (2^14,), uint32."""

  def update(bins: jax.Array, x: jax.Array, axis_name: str | None) -> jax.Array:
    batch = jnp.zeros_like(bins).at[_bin(x).reshape(-1)].add(1)
    return _add(bins, axis.psum(batch, axis_name))

  return Statistic(_COUNTS, lambda x: jnp.zeros(2**_BITS, jnp.uint32), update, _add, np.asarray)


def _add(a: jax.Array, b: jax.Array) -> jax.Array:
  total = a + b
  return jnp.where(total < a, jnp.uint32(2**32 - 1), total)


def _bin(x: jax.Array) -> jax.Array:
  """The place of float32 numbers among the bins, in their order."""
  pattern = jax.lax.bitcast_convert_type(x.astype(jnp.float32) + 0.0, jnp.uint32)
  ordered = jnp.where(pattern >> 31 == 1, ~pattern, pattern | jnp.uint32(2**31))
  return (ordered >> _SHIFT).astype(jnp.int32)


def _edges() -> np.ndarray:
  """The least number of each bin, and one behind the last; finite."""
  ordered = np.minimum(np.arange(2**_BITS + 1, dtype=np.uint64) << _SHIFT, 2**32 - 1).astype(np.uint32)
  pattern = np.where(ordered >> 31 == 1, ordered & np.uint32(2**31 - 1), ~ordered)
  edges, largest = pattern.view(np.float32), np.finfo(np.float32).max
  return np.where(np.isfinite(edges), edges, np.where(ordered >> 31 == 1, largest, -largest))


def _range(stats: Stats, share: float) -> tuple[jax.Array, jax.Array]:
  edges, bins, (lowest, highest) = _edges(), stats[_COUNTS], stats["extrema"]
  low, below = _leave_out(bins, share)
  high, above = _leave_out(bins[::-1], share)
  high = bins.size - 1 - high
  width = jnp.asarray(np.diff(edges / 2))  # halved: the outermost bins are as wide as the largest number
  edges = jnp.asarray(edges)
  ends = edges[low] + 2 * below * width[low], edges[high + 1] - 2 * above * width[high]
  return jnp.clip(ends[0], lowest, highest), jnp.clip(ends[1], lowest, highest)


def _leave_out(bins: jax.Array, share: float) -> tuple[jax.Array, jax.Array]:
  """The bin in which a share of all values ends, counted from the first, and the part of the bin that it takes."""
  counts = bins.astype(jnp.float32)
  through = jnp.cumsum(counts)
  left = share * through[-1]
  place = jnp.argmax(through > left)
  return place, (left - (through[place] - counts[place])) / jnp.maximum(counts[place], 1)
