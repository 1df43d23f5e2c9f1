"""Exponential moving average of each batch's lowest and highest value (Jacob et al., arXiv:1712.05877, section 3.1).

    first batch: m = x;   then m <- m + rate (x - m)

The first batch is taken whole, so that no correction for the start is needed.
"""

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core.errors import UserError
from leanax.graph.kinds import Statistic
from leanax.graph.statistics import Extrema, extrema
from quant.observers.base import Observer, batches


def ema(rate: float = 0.01) -> Observer:
  """The moving average of the batches' ranges and mean magnitudes.

  Args:
    rate: in (0, 1], the share of a new batch.
  """
  if not 0 < rate <= 1:
    raise UserError(f"ema: rate is {rate}; expected a number above 0 and at most 1")
  return Observer((moving_extrema(rate),), lambda stats, bits: stats["moving_extrema"], batches(rate))


def moving_extrema(rate: float) -> Statistic:
  """Returns the moving average of the lowest and the highest value per batch, an `Extrema`; the order matters."""
  whole = extrema()

  def update(state: Extrema, x: jax.Array, axis_name: str | None) -> Extrema:
    batch = whole.update(whole.init(jax.ShapeDtypeStruct(x.shape, x.dtype)), x, axis_name)
    low, high = (m + rate * (new - m) for m, new in zip(state, batch, strict=True))
    first = jnp.isinf(state.low)  # nothing was seen
    return Extrema(jnp.where(first, batch.low, low), jnp.where(first, batch.high, high))

  return Statistic("moving_extrema", whole.init, update, None, lambda state: Extrema(*map(np.asarray, state)))
