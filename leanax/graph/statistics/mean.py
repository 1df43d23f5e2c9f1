"""The mean of a tensor, or of each channel.

Bias correction needs it (Nagel et al., arXiv:1906.04721, section 4.2); LSQ starts from that of the magnitudes (Esser et
al., arXiv:1902.08153, section 2.1).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from leanax.core import axis as devices
from leanax.graph import totals
from leanax.graph.kinds import Statistic
from leanax.graph.reduced import Axis, kept_shape, others


class Sum(NamedTuple):
  """The sum of what was seen, and how many numbers each of its entries is a sum of."""

  total: totals.Total
  count: totals.Count


def mean(axis: Axis = None, magnitude: bool = False) -> Statistic:
  """Computes the mean over all batches, every number weighted alike; float64, NaN while nothing was seen.

  Args:
    axis: the axis, or axes, whose entries have means of their own, such as -1 for channels; None for the tensor's.
    magnitude: of |x| instead, under the name "mean_magnitude".
  """
  name = "mean_magnitude" if magnitude else "mean"

  def init(x: jax.ShapeDtypeStruct) -> Sum:
    shape = kept_shape(name, axis, x)
    return Sum(totals.no_total(shape), totals.no_count((1,) * len(shape)))

  def update(state: Sum, x: jax.Array, axis_name: str | None) -> Sum:
    over = others(axis, x)
    batch = devices.psum(jnp.sum(jnp.abs(x) if magnitude else x, over), axis_name)
    count = totals.counted(math.prod(x.shape[i] for i in over) * devices.size(axis_name))
    return Sum(totals.add(state.total, batch), totals.add_counts(state.count, count))

  def merge(a: Sum, b: Sum) -> Sum:
    return Sum(totals.add_totals(a.total, b.total), totals.add_counts(a.count, b.count))

  return Statistic(name, init, update, merge, lambda state: totals.mean(*state))
