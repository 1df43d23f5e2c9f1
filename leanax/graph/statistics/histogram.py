"""A histogram between two fixed ends, such as the extrema of a first pass over the batches.

Percentiles, and ranges of least squared error or least divergence (Migacz, "8-bit inference with TensorRT", GTC 2017),
are found from it. The bin of x is `floor((x - low) / (high - low) * bins)`, and x = high is in the last one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core import axis as devices
from leanax.core import ranges
from leanax.core.errors import UserError
from leanax.graph import totals
from leanax.graph.kinds import Statistic


class Histogram(NamedTuple):
  """The counts of the numbers in each bin; uint64.

  Attributes:
    counts: (bins,).
    edges: (bins + 1,), float64.
    below: how many were below the lowest edge, infinity among them.
    above: how many were above the highest.
    nan: how many were no number.
  """

  counts: np.ndarray
  edges: np.ndarray
  below: np.ndarray
  above: np.ndarray
  nan: np.ndarray


def histogram(low: float, high: float, bins: int = 2048) -> Statistic:
  """Counts the numbers in bins of equal width, exactly; a `Histogram`.

  Args:
    low: the lowest edge; finite.
    high: the highest edge, above `low` in float32.
    bins: how many.

  Raises:
    UserError: no number can lie between the ends.
  """
  for key, end in (("low", low), ("high", high)):
    ranges.check(f"histogram: {key}", end, ranges.FINITE)
  ranges.check("histogram: bins", bins, ranges.whole(1))
  first, last = np.float32(low), np.float32(high)
  with np.errstate(over="ignore"):
    width = last - first
  if not 0 < width < np.inf:
    raise UserError(f"histogram: low is {low} and high is {high}; expected low below high, as float32 has them")

  def init(x: jax.ShapeDtypeStruct) -> totals.Count:
    return totals.no_count((bins + 3,))

  def update(state: totals.Count, x: jax.Array, axis_name: str | None) -> totals.Count:
    place = jnp.floor((x - first) / width * np.float32(bins))
    place = 1 + jnp.clip(place, 0, bins - 1).astype(jnp.int32)
    place = jnp.where(x < first, 0, jnp.where(x > last, bins + 1, jnp.where(jnp.isnan(x), bins + 2, place)))
    found = jnp.zeros(bins + 3, jnp.uint32).at[place.reshape(-1)].add(jnp.uint32(1))
    return totals.add_counts(state, totals.counted(devices.psum(found, axis_name)))

  def value(state: totals.Count) -> Histogram:
    counts = totals.whole(state)
    edges = np.linspace(np.float64(first), np.float64(last), bins + 1)
    return Histogram(counts[..., 1:-2], edges, counts[..., 0], counts[..., -2], counts[..., -1])

  return Statistic("histogram", init, update, totals.add_counts, value)
