"""Cyclic pruning: the density falls along a cubic several times (Srinivas, Kuzmin, Nagel, van Baalen, Skliar,
Blankevoort, "Cyclical Pruning for Sparse Neural Networks", arXiv:2202.01290, section 3).

Each cycle starts at the initial density again, at which weights that were pruned too early come back, from zero.
"""

import itertools

from leanax.core import ranges
from leanax.core.errors import UserError
from sparsity.schedules.base import Schedule, check_times, gradual


def cyclic(start: int, end: int, every: int = 1, cycles: int = 3, initial: float = 1.0) -> Schedule:
  """Makes `cycles` cycles of `cubic` between `start` and `end`; the last one ends at `end`, at the final density.

  Args:
    start: the optimizer update of the first mask update.
    end: from which on the final density holds.
    every: optimizer updates between mask updates.
    cycles: how many.
    initial: the density at the start of each cycle.

  Raises:
    UserError: start < 0, end < start, every < 1, initial outside (0, 1], or cycles of which one has less than two mask
      updates.
  """
  start, end, every = check_times("cyclic", start, end, every)
  ranges.check("cyclic: cycles", cycles, ranges.whole(1))
  bounds = [start + (end + 1 - start) * i // cycles for i in range(cycles + 1)]
  parts = [gradual("cyclic", a, b - 1, every, initial, 3) for a, b in itertools.pairwise(bounds) if b - a > 1]
  if len(parts) < cycles:
    raise UserError(
      f"cyclic: {cycles} cycles from update {start} to {end} leave one of them less than two updates; expected at most "
      f"{max((end + 1 - start) // 2, 1)} cycles"
    )
  return Schedule(sum((one.steps for one in parts), ()), sum((one.remaining for one in parts), ()), parts[0].initial)
