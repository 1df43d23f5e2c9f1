"""A straight line between two numbers, such as the warm-up of a term's weight. No paper."""

from kd.schedules.base import Number, ramp


def linear(low: float, high: float, start: float, end: float) -> Number:
  """Returns a line from `low` at update `start` to `high` at `end`, constant before and after."""
  return ramp("linear", low, high, start, end, lambda fraction: fraction)
