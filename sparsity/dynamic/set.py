"""Sparse evolutionary training, SET (Mocanu et al., "Scalable training of artificial neural networks with adaptive
sparse connectivity inspired by network science", arXiv:1707.04780).

Weights of smallest magnitude are dropped and as many grown at random. Where we differ: the paper drops the fraction of
the smallest positive and of the largest negative weights, each by themselves, we of all by |w|, as RigL's comparison
does (arXiv:1911.11134); a grown weight starts from zero and not from a random number; and the masks of the start have
exact counts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import optax

from sparsity.criteria import magnitude, random
from sparsity.dynamic.base import dynamic
from sparsity.levels import Allocation
from sparsity.schedules import Schedule
from sparsity.select import KERNELS, Setting, Stacked


def set(
  inner: optax.GradientTransformation,
  *,
  density: float,
  schedule: Schedule,
  fraction: float | Callable[[int], Any] = 0.3,
  allocation: Allocation = "erk",
  rules: Sequence[tuple[str, Setting]] = KERNELS,
  stacked: Stacked = (),
  pack_axis: int = -1,
  seed: int | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Returns `sparsity.dynamic` that drops by magnitude and grows at random, with its arguments and errors.

  The paper moves masks once per epoch, at a fraction of 0.3, and starts from Erdos-Renyi masks ("erk").
  """
  goal = {"density": density, "allocation": allocation, "rules": rules, "stacked": stacked}
  return dynamic(inner, magnitude(), random(), fraction, schedule, **goal, pack_axis=pack_axis, seed=seed)
