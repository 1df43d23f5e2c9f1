"""Gradual pruning along a cubic (Zhu & Gupta, "To prune, or not to prune", arXiv:1710.01878)."""

from sparsity.schedules.base import Schedule, gradual


def cubic(start: int, end: int, every: int = 1, initial: float = 1.0) -> Schedule:
  """Gradual pruning after equation 1 of the paper.

      s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (t_n - t_0))^3,   t = t_0, t_0 + every, ..., t_n

  In densities, d = 1 - s, the same. We differ in one point: `end` is a mask update even when it is not on the grid of
  `every`, so that the final density is always reached.

  Args:
    start: t_0, the optimizer update of the first mask update.
    end: t_n, from which on the final density holds.
    every: optimizer updates between mask updates.
    initial: the density d_i = 1 - s_i at `start`.

  Raises:
    UserError: start < 0, end < start, every < 1, or initial outside (0, 1].
  """
  return gradual("cubic", start, end, every, initial, power=3)
