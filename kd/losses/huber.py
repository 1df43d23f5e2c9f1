"""Huber's distance, for regression with outliers: Huber, "Robust Estimation of a Location Parameter" (1964); in
distillation, `rkd` (arXiv:1904.05068) uses it.

    loss_i = sum_c h(student_ic - y_ic),   y = the teacher's outputs, or batch["target"]
    h(r) = r^2 / 2 where |r| <= delta,  delta (|r| - delta / 2) beyond

The gradient of an output is at most delta. As delta grows this is half of `squared_error`. Reduction: a sum over the
outputs, one number per example.
"""

from typing import Any

import jax.numpy as jnp

from kd.base import ClassMask, Logits, PerExample, loss
from kd.kinds import Loss
from kd.logits import gap
from leanax.core import ranges
from leanax.core.errors import unknown


def huber(delta: float = 1.0, source: str = "teacher") -> Loss:
  """Huber's distance of each output; one output or more.

  Args:
    delta: above 0, in the outputs' unit: the distance beyond which the loss grows linearly.
    source: of the targets: "teacher", or "batch" for `batch["target"]`, (batch, *positions, outputs) floats.
  """
  ranges.check("huber: delta", delta, ranges.POSITIVE)
  if source not in ("teacher", "batch"):
    raise unknown("source of huber", source, ("teacher", "batch"))

  def distance(
    student: Logits, teacher: Any, *, class_mask: ClassMask | None, target: Logits | None = None
  ) -> PerExample:
    residual = jnp.abs(gap(student, teacher if target is None else target, class_mask))
    clipped = jnp.minimum(residual, delta)
    return jnp.sum(clipped * (residual - 0.5 * clipped), axis=-1)

  alone = source == "batch"
  reads = ("class_mask", "target") if alone else ("class_mask",)
  return loss(distance, "huber", reads=reads, needs_teacher=not alone, classes=1, mean="outputs")
