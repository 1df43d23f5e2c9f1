"""Phases of pruned and of dense training in turns (Peste, Iofinova, Vladu, Alistarh, "AC/DC: Alternating
Compressed/DeCompressed Training of Deep Neural Networks", arXiv:2106.12379, section 3).

A pruned phase comes first and last; in a dense one what was pruned trains on from zero. The last pruned phase is what
remains of the training, in which the mask stays.
"""

from leanax.core.errors import UserError
from sparsity.schedules.base import Schedule, check_times


def alternating(start: int, end: int, every: int) -> Schedule:
  """Makes a mask at `start`, opens it after `every` updates, and so on; at `end` it is made for the last time.

  Args:
    start: the optimizer update of the first mask; the dense warm-up before it is the first dense phase.
    end: the optimizer update from which the last mask holds; it may cut the phase before it short.
    every: optimizer updates of a phase.

  Raises:
    UserError: start < 0, end < start, every < 1, or no time for a dense phase between start and end.
  """
  start, end, every = check_times("alternating", start, end, every)
  steps = (*range(start, end, every), end)
  if len(steps) < 3:
    raise UserError(
      f"alternating: between start {start} and end {end} a phase of {every} updates leaves no dense phase; expected an "
      f"end above {start + every}, or a smaller every"
    )
  return Schedule(steps, (*(float(number % 2) for number in range(len(steps) - 1)), 0.0))
