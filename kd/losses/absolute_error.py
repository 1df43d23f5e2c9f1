"""Absolute error, for regression whose outliers should not decide, and its distillation. No paper.

    loss_i = sum_c |student_ic - y_ic|,   y = the teacher's outputs, or batch["target"]

The gradient of an output is -1, 0 where both are equal, or 1. `huber` is its smooth form. Reduction: a sum over the
outputs, one number per example.
"""

from typing import Any

import jax
import jax.numpy as jnp

from kd.base import ClassMask, Logits, PerExample, loss
from kd.kinds import Loss
from kd.logits import gap
from leanax.core.errors import unknown


def absolute_error(source: str = "teacher") -> Loss:
  """Absolute distance of each output; one output or more.

  Args:
    source: of the targets: "teacher", or "batch" for `batch["target"]`, (batch, *positions, outputs) floats.
  """
  if source not in ("teacher", "batch"):
    raise unknown("source of absolute_error", source, ("teacher", "batch"))

  def distance(
    student: Logits, teacher: Any, *, class_mask: ClassMask | None, target: Logits | None = None
  ) -> PerExample:
    residual = gap(student, teacher if target is None else target, class_mask)
    return jnp.sum(residual * jax.lax.stop_gradient(jnp.sign(residual)), axis=-1)  # jax's |x| has the gradient 1 at 0

  alone = source == "batch"
  reads = ("class_mask", "target") if alone else ("class_mask",)
  return loss(distance, "absolute_error", reads=reads, needs_teacher=not alone, classes=1, mean="outputs")
