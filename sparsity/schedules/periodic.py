"""Mask updates at equal intervals, all at the final density: for methods that move a mask. No paper."""

from leanax.core import ranges
from leanax.core.errors import UserError
from sparsity.schedules.base import Schedule


def periodic(every: int, end: int, start: int | None = None) -> Schedule:
  """Makes masks anew at start, start + every, ... before `end`.

  Args:
    every: optimizer updates between mask updates.
    end: the optimizer update from which on masks stay.
    start: the optimizer update of the first mask update; None: `every`.

  Raises:
    UserError: every < 1, start < 0, or end <= start.
  """
  start = every if start is None else start
  for name, value, least in (("every", every, 1), ("start", start, 0), ("end", end, 0)):
    ranges.check(f"periodic: {name}", value, ranges.whole(least))
  steps = tuple(range(int(start), int(end), int(every)))
  if not steps:
    raise UserError(f"periodic: start is {start} and end {end}; expected it to end after it starts")
  return Schedule(steps, (0.0,) * len(steps), end=int(end))
