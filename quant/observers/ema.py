"""Exponential moving average of each batch's lowest and highest value (Jacob et al., arXiv:1712.05877, section 3.1).

    first batch: m = x;   then m <- m + rate (x - m)

Starting from the first batch, and not from 0, needs no correction for the start.
"""

import jax

from leanax.core.errors import UserError
from quant.observers.base import Observer, Range, first_or, measure, of_range


def ema(rate: float = 0.01) -> Observer:
  """The moving average of the batches' ranges.

  Args:
    rate: in (0, 1], the share of a new batch.
  """
  if not 0 < rate <= 1:
    raise UserError(f"ema: rate is {rate}; expected a number above 0 and at most 1")

  def update(state: Range, x: jax.Array, axis_name: str | None = None) -> Range:
    batch = measure(x, axis_name)

    def average(mean: jax.Array, new: jax.Array) -> jax.Array:
      return mean + rate * (new - mean)

    low, high = average(state.low, batch.low), average(state.high, batch.high)
    return first_or(state, batch, Range(low, high, average(state.magnitude, batch.magnitude), state.count))

  return of_range(update)
