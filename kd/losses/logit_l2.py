"""Regression on logits: Ba and Caruana, "Do Deep Nets Really Need to be Deep?" (arXiv:1312.6184), equation 1.

    loss_i = 1/2 * sum_c (student_ic - teacher_ic)^2

The paper's loss is the sum over classes. With `reduction="mean"` the sum is divided by the number of valid classes;
this is the limit of Hinton's loss at high temperature, for logits with zero mean per example. One number per example.
"""

import jax.numpy as jnp

from kd.base import ClassMask, Logits, PerExample, loss
from kd.kinds import Loss
from kd.logits import gap, not_excluded
from leanax.core.errors import unknown


def logit_l2(reduction: str = "sum") -> Loss:
  """Half the squared distance of the logits.

  Args:
    reduction: over the classes, "sum" (the paper's) or "mean".
  """
  if reduction not in ("sum", "mean"):
    raise unknown("reduction", reduction, ("sum", "mean"))

  def distance(student: Logits, teacher: Logits, *, class_mask: ClassMask | None) -> PerExample:
    total = 0.5 * jnp.sum(gap(student, teacher, class_mask) ** 2, axis=-1)
    if reduction == "sum":
      return total
    used = jnp.sum(not_excluded(student, teacher, class_mask), axis=-1)
    return total / jnp.maximum(used, 1).astype(total.dtype)

  return loss(distance, "logit_l2", reads=("class_mask",), classes=1)
