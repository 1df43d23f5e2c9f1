"""Schedules: the steps at which masks are made anew, and the density after each.

A schedule is a finite list of mask updates, each at a number of optimizer updates. Being finite, its kept counts are
computed once, exactly, as Python ints: a float32 product inside the step would be off by one from 16 million weights
on.
"""

import bisect
import itertools
import math
from typing import NamedTuple

from leanax.core import ranges
from leanax.core.errors import UserError
from sparsity.allocations.base import check_density


class Schedule(NamedTuple):
  """The mask updates of a training run.

  Attributes:
    steps: the numbers of optimizer updates at which mask updates are due, increasing.
    remaining: per mask update, the fraction of the way from the initial to the final density that remains; at last 0.
    initial: the density at the start.
    end: the optimizer update from which masks stay as they are, of a schedule that has one; above the last of steps.
  """

  steps: tuple[int, ...]
  remaining: tuple[float, ...]
  initial: float = 1.0
  end: int | None = None

  def densities(self, final: float) -> list[float]:
    """Returns the density after each mask update; a layer that ends denser than `initial` starts at its end."""
    start = max(self.initial, final)
    return [final + (start - final) * rest for rest in self.remaining]

  def density(self, step: int, final: float) -> float:
    """Returns the density in force at `step`: 1 before the first mask update, `final` from the last one on."""
    done = bisect.bisect_right(self.steps, step)
    return self.densities(final)[done - 1] if done else 1.0


def gradual(name: str, start: int, end: int, every: int, initial: float, power: int) -> Schedule:
  """Returns mask updates at start, start + every, ... and `end`, between which ((end - t) / (end - start))^power falls.

  Args:
    name: of the schedule, for errors.
    start: the optimizer update of the first mask update.
    end: that of the last one, which is made whether or not it is on the grid of `every`.
    every: optimizer updates between mask updates.
    initial: the density at `start`.
    power: 1 or more.

  Raises:
    UserError: start < 0, end < start, every < 1, or initial outside (0, 1].
  """
  start, end, every = check_times(name, start, end, every)
  initial = check_density(f"{name}: initial", initial)
  steps = (*range(start, end, every), end)
  return Schedule(steps, (*(((end - t) / max(end - start, 1)) ** power for t in steps[:-1]), 0.0), initial)


def check_times(name: str, start: int, end: int, every: int) -> tuple[int, int, int]:
  """Returns the three as ints.

  Raises:
    UserError: start < 0, end < start, every < 1, or no whole numbers.
  """
  for key, value, least in (("start", start, 0), ("end", end, 0), ("every", every, 1)):
    ranges.check(f"{name}: {key}", value, ranges.whole(least))
  if start > end:
    raise UserError(f"{name}: start is {start} and end {end}; expected it to end no earlier than it starts")
  return int(start), int(end), int(every)


def check_schedule(schedule: Schedule) -> Schedule:
  """Returns `schedule`, which may be written by hand, once it is checked.

  Raises:
    UserError: it is not a schedule, or does not end at the final density.
  """
  if not isinstance(schedule, Schedule):
    raise UserError(f"schedule is {schedule!r}; expected such as sparsity.cubic(0, 1000) or sparsity.one_shot()")
  steps, rest = schedule.steps, schedule.remaining
  rising = all(a < b for a, b in itertools.pairwise((-1, *steps)))
  if not steps or len(steps) != len(rest) or not rising or rest[-1] != 0 or not all(map(math.isfinite, rest)):
    raise UserError(f"{schedule} has to have rising steps from 0 on, and as many remaining parts, the last of them 0")
  if schedule.end is not None and not schedule.end > steps[-1]:
    raise UserError(f"the schedule ends at {schedule.end!r} and makes a mask at {steps[-1]}; expected it to end later")
  if steps[-1] >= 2**31:
    raise UserError(f"the schedule's last mask update is at {steps[-1]}; expected less than 2^31, for steps are int32")
  return schedule
