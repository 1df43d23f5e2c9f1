"""One-shot pruning: the whole way in one step. No paper."""

from core.errors import UserError
from sparsity.schedules.base import Schedule


def one_shot(at: int = 0) -> Schedule:
  """Prunes to the final density in the step `at`, and holds it."""
  if at < 0:
    raise UserError(f"one_shot(at={at}) needs a step of 0 or more")
  return Schedule((at,), (0.0,))
