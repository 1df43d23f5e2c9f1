"""The second moment `X^T X / n` of the rows that a site multiplies by its kernel (`graph.rows`).

GPTQ (Frantar et al., arXiv:2210.17323, H = 2 X X^T) and SparseGPT (Frantar and Alistarh, arXiv:2301.00774) solve with
it; its diagonal is the squared norm that Wanda (Sun et al., arXiv:2306.11695) ranks by.
"""

import jax
import jax.numpy as jnp

from leanax.core import axis as devices
from leanax.graph import totals
from leanax.graph.kinds import Statistic
from leanax.graph.statistics.mean import Sum


def second_moment() -> Statistic:
  """Computes the mean of x x^T over all positions of all batches: (groups, in, in), float64; NaN of no data.

  It has the inputs in the order of `graph.matmul`. Positions that are padding are zeros, as in the product itself.
  """

  def init(x: jax.ShapeDtypeStruct) -> Sum:
    groups, _, inputs = x.shape
    return Sum(totals.no_total((groups, inputs, inputs)), totals.no_count((1, 1, 1)))

  def update(state: Sum, x: jax.Array, axis_name: str | None) -> Sum:
    batch = jnp.einsum("gni,gnj->gij", x, x, precision=jax.lax.Precision.HIGHEST)
    count = totals.counted(x.shape[1] * devices.size(axis_name))
    return Sum(totals.add(state.total, devices.psum(batch, axis_name)), totals.add_counts(state.count, count))

  def merge(a: Sum, b: Sum) -> Sum:
    return Sum(totals.add_totals(a.total, b.total), totals.add_counts(a.count, b.count))

  return Statistic("second_moment", init, update, merge, lambda state: totals.mean(*state), rows=True)
