"""One-shot pruning: the whole way in one step. No paper."""

from leanax.core import ranges
from sparsity.schedules.base import Schedule


def one_shot(at: int = 0) -> Schedule:
  """Prunes to the final density in the step `at`, and holds it."""
  ranges.check("one_shot: at", at, ranges.whole(0))
  return Schedule((int(at),), (0.0,))
