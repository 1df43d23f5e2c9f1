"""A straight line between two numbers, such as the warm-up of a term's weight. No paper."""

from kd.schedules.base import Number, share


def linear(low: float, high: float, start: float, end: float) -> Number:
  """From `low` at update `start` to `high` at `end`, constant before and after."""
  done = share("linear", start, end)
  return lambda step: low + (high - low) * done(step)
