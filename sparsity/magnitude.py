"""Magnitude pruning (Han et al., "Learning both Weights and Connections", arXiv:1506.02626), gradual when scheduled."""

from collections.abc import Sequence

import optax

from sparsity.criteria import magnitude as by_magnitude
from sparsity.levels import Allocation
from sparsity.patterns import Pattern
from sparsity.prune import prune
from sparsity.schedules import Schedule
from sparsity.select import KERNELS, Setting, Stacked


def magnitude(
  inner: optax.GradientTransformation,
  *,
  density: float | None = None,
  threshold: float | None = None,
  allocation: Allocation = "uniform",
  schedule: Schedule | None = None,
  pattern: Pattern | None = None,
  rules: Sequence[tuple[str, Setting]] = KERNELS,
  stacked: Stacked = (),
  pack_axis: int = -1,
) -> optax.GradientTransformationExtraArgs:
  """Returns `sparsity.prune` by `sparsity.criteria.magnitude()`, with its arguments and errors."""
  goal = {"density": density, "threshold": threshold}
  return prune(
    inner, by_magnitude(), pattern, allocation, schedule, **goal, rules=rules, stacked=stacked, pack_axis=pack_axis
  )
