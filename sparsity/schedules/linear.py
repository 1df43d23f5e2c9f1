"""Gradual pruning along a line: the same share at each mask update. No paper."""

from sparsity.schedules.base import Schedule, gradual


def linear(start: int, end: int, every: int = 1, initial: float = 1.0) -> Schedule:
  """Gradual pruning in equal parts.

      d_t = d_f + (d_i - d_f) (t_n - t) / (t_n - t_0),   t = t_0, t_0 + every, ..., t_n

  `end` is a mask update even when it is not on the grid of `every`.

  Args:
    start: t_0, the optimizer update of the first mask update.
    end: t_n, from which on the final density holds.
    every: optimizer updates between mask updates.
    initial: the density d_i at `start`.

  Raises:
    UserError: start < 0, end < start, every < 1, or initial outside (0, 1].
  """
  return gradual("linear", start, end, every, initial, power=1)
