"""When masks are made anew, and how far pruning has then come.

A schedule is a finite list of mask updates, each at a number of optimizer updates. Being finite, its kept counts are
computed once, exactly, as Python ints: a float32 product inside the step would be off by one from 16 million weights
on.
"""

import bisect
from typing import NamedTuple


class Schedule(NamedTuple):
  """The mask updates of a training run.

  Attributes:
    steps: at how many optimizer updates so far each mask update is due, rising.
    remaining: for each, the part of the way from the initial to the final density that is still to go; the last is 0.
    initial: the density from which the way begins.
  """

  steps: tuple[int, ...]
  remaining: tuple[float, ...]
  initial: float = 1.0

  def densities(self, final: float) -> list[float]:
    """The density after each mask update; a layer whose final density is above `initial` begins at its final one."""
    start = max(self.initial, final)
    return [final + (start - final) * rest for rest in self.remaining]

  def density(self, step: int, final: float) -> float:
    """The density in force at `step`: 1 before the first mask update, `final` from the last one on."""
    done = bisect.bisect_right(self.steps, step)
    return self.densities(final)[done - 1] if done else 1.0
