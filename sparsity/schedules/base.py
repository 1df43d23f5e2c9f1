"""When masks are made anew, and how far pruning has then come.

A schedule is a finite list of mask updates, each at a number of optimizer updates. Being finite, its kept counts are
computed once, exactly, as Python ints: a float32 product inside the step would be off by one from 16 million weights
on.
"""

import bisect
import itertools
import math
from typing import NamedTuple

from leanax.core.errors import UserError


class Schedule(NamedTuple):
  """The mask updates of a training run.

  Attributes:
    steps: at how many optimizer updates so far each mask update is due, rising.
    remaining: for each, the part of the way from the initial to the final density that is still to go; the last is 0.
    initial: the density from which the way begins.
    end: the optimizer update from which on masks stay, of a schedule that says so; above the last of steps.
  """

  steps: tuple[int, ...]
  remaining: tuple[float, ...]
  initial: float = 1.0
  end: int | None = None

  def densities(self, final: float) -> list[float]:
    """The density after each mask update; a layer whose final density is above `initial` begins at its final one."""
    start = max(self.initial, final)
    return [final + (start - final) * rest for rest in self.remaining]

  def density(self, step: int, final: float) -> float:
    """The density in force at `step`: 1 before the first mask update, `final` from the last one on."""
    done = bisect.bisect_right(self.steps, step)
    return self.densities(final)[done - 1] if done else 1.0


def check_schedule(schedule: Schedule) -> Schedule:
  """`schedule`, which somebody may have written by hand.

  Raises:
    UserError: it is none, or would not end at the final density.
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
