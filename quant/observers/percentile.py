"""Percentile observer: the range without a share of the values at each end (Wu et al., arXiv:2004.09602, section 3.3).

The share is one of all values of all batches, from a histogram with fixed bins (`quant/bins.py`). Within a bin values
are taken as evenly spread. The ends stay within the lowest and the highest value seen: percentile 100 is `min_max`.

Where we differ: the paper takes the percentile of magnitudes, for symmetric grids; here each end loses the share of
values beyond it, for affine ones.
"""

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core import ranges
from leanax.graph.statistics import extrema
from quant import bins
from quant.observers.base import Observer, Stats


def percentile(q: float = 99.99) -> Observer:
  """The range between the (100 - q)-th and the q-th percentile of everything seen.

  Args:
    q: above 50, at most 100.
  """
  ranges.check("percentile: q", q, ranges.Range("a number above 50 and at most 100", lambda q: 50 < q <= 100))
  return Observer((extrema(), bins.float_histogram()), lambda stats, bits: _range(stats, 1 - q / 100))


def _range(stats: Stats, share: float) -> tuple[jax.Array, jax.Array]:
  edges, counts, (lowest, highest) = bins.edges(), stats[bins.COUNTS], stats["extrema"]
  low, below = _leave_out(counts, share)
  high, above = _leave_out(counts[::-1], share)
  high = counts.size - 1 - high
  width = jnp.asarray(np.diff(edges / 2))  # halved: the outermost bins are as wide as the largest number
  edges = jnp.asarray(edges)
  ends = edges[low] + 2 * below * width[low], edges[high + 1] - 2 * above * width[high]
  return jnp.clip(ends[0], lowest, highest), jnp.clip(ends[1], lowest, highest)


def _leave_out(counts: jax.Array, share: float) -> tuple[jax.Array, jax.Array]:
  """Returns the bin in which a share of all values ends, counted from the first, and the part of it that it takes."""
  counts = counts.astype(jnp.float32)
  through = jnp.cumsum(counts)
  left = share * through[-1]
  place = jnp.argmax(through > left)
  return place, (left - (through[place] - counts[place])) / jnp.maximum(counts[place], 1)
