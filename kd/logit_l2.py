"""Regression on logits: Ba and Caruana, "Do Deep Nets Really Need to be Deep?" (arXiv:1312.6184), equation 1.

    loss_i = 1/2 * sum_c (student_ic - teacher_ic)^2

The paper's loss is the sum over classes, and the mean over examples is left to the caller as everywhere. With
`reduction="mean"` the sum is divided by the number of classes that count; this is then the limit of Hinton's loss at
high temperature, for logits of zero mean in each example.
"""

import jax.numpy as jnp

from core.errors import unknown
from kd.base import ClassMask, Logits, Loss, PerExample, lift
from kd.logits import not_excluded


def logit_l2(reduction: str = "sum") -> Loss:
  """Half the squared distance of the logits.

  Args:
    reduction: over the classes, "sum" (the paper's) or "mean".
  """
  if reduction not in ("sum", "mean"):
    raise unknown("reduction", reduction, ("sum", "mean"))

  def distance(student: Logits, teacher: Logits, class_mask: ClassMask | None) -> PerExample:
    used = not_excluded(student, teacher, class_mask)
    gap = jnp.where(used, student, 0.0) - jnp.where(used, teacher, 0.0)
    total = 0.5 * jnp.sum(gap**2, axis=-1)
    if reduction == "sum":
      return total
    return total / jnp.maximum(jnp.sum(used, axis=-1), 1).astype(total.dtype)

  return lift(distance, "logit_l2", classes=1)
