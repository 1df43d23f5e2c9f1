"""RigL, rigging the lottery (Evci, Gale, Menick, Castro, Elsen, "Rigging the Lottery: Making All Tickets Winners",
arXiv:1911.11134, section 3).

    f(t) = alpha / 2 (1 + cos(pi t / T_end)),   of the kept weights at each mask update, t < T_end

So many of smallest magnitude are dropped, and as many grown where the gradient, that of pruned entries too, is largest
in magnitude; a grown weight starts from zero. What was just dropped may be grown again, as in the paper, and keeps its
value then, as in the authors' code. T_end is the schedule's end; without one, the update after its last.

Where we differ: the optimizer's step is taken at mask updates too, as in the authors' code, not skipped; counts are
rounded down.
"""

import math
from collections.abc import Sequence

import optax

from leanax.core import ranges
from sparsity.criteria import Score, magnitude
from sparsity.dynamic.base import dynamic
from sparsity.levels import Allocation
from sparsity.schedules import Schedule, check_schedule
from sparsity.select import KERNELS, Setting, Stacked


def rigl(
  inner: optax.GradientTransformation,
  *,
  density: float,
  schedule: Schedule,
  fraction: float = 0.3,
  allocation: Allocation = "erk",
  rules: Sequence[tuple[str, Setting]] = KERNELS,
  stacked: Stacked = (),
  pack_axis: int = -1,
  seed: int | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Returns `sparsity.dynamic` that drops by magnitude and grows by the gradient, with its arguments and errors.

  The paper moves masks every 100 updates over the first three quarters of the training.

  Args:
    inner: any optax optimizer; gradients are dense and averaged over devices.
    density: as of `sparsity.dynamic`.
    schedule: such as `sparsity.schedules.periodic(every=100, end=7500)`; its end is T_end.
    fraction: alpha, the fraction that would be dropped at t = 0.
    allocation: as of `sparsity.dynamic`.
    rules: the same.
    stacked: the same.
    pack_axis: the same.
    seed: the same.
  """
  ranges.check("rigl: fraction", fraction, ranges.SHARE)
  last = check_schedule(schedule).steps[-1]
  end = last + 1 if schedule.end is None else schedule.end

  def decayed(step: int) -> float:
    return fraction / 2 * (1 + math.cos(math.pi * step / end))

  gradient = Score(lambda w, g, memory, *, step, key: g, absolute=True)
  goal = {"density": density, "allocation": allocation, "rules": rules, "stacked": stacked}
  return dynamic(inner, magnitude(), gradient, decayed, schedule, **goal, pack_axis=pack_axis, seed=seed)
