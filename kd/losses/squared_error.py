"""Squared error, for regression and its distillation: that of Ba and Caruana (arXiv:1312.6184, equation 1) without
the 1/2.

    loss_i = sum_c (student_ic - y_ic)^2,   y = the teacher's outputs, or batch["target"]

`logit_l2` is half of it. Reduction: a sum over the outputs, one number per example.
"""

from typing import Any

import jax.numpy as jnp

from kd.base import ClassMask, Logits, PerExample, loss
from kd.kinds import Loss
from kd.logits import gap
from leanax.core.errors import unknown


def squared_error(source: str = "teacher") -> Loss:
  """Squared distance of each output; one output or more.

  Args:
    source: of the targets: "teacher", or "batch" for `batch["target"]`, (batch, *positions, outputs) floats.
  """
  if source not in ("teacher", "batch"):
    raise unknown("source of squared_error", source, ("teacher", "batch"))

  def distance(
    student: Logits, teacher: Any, *, class_mask: ClassMask | None, target: Logits | None = None
  ) -> PerExample:
    return jnp.sum(gap(student, teacher if target is None else target, class_mask) ** 2, axis=-1)

  alone = source == "batch"
  reads = ("class_mask", "target") if alone else ("class_mask",)
  return loss(distance, "squared_error", reads=reads, needs_teacher=not alone, classes=1, mean="outputs")
