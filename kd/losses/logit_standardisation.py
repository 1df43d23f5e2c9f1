"""Distillation of standardised logits: Sun et al., "Logit Standardization in Knowledge Distillation"
(arXiv:2403.01427), algorithm 1.

    z = (logits_i - their mean) / (their standard deviation + eps)
    loss_i = T^2 * KL(softmax(z_teacher / T) || softmax(z_student / T))

Both networks' logits are standardised to mean 0 and deviation 1 over the valid classes: the loss does not change if an
example's logits are scaled or shifted. Variant: that of the authors' code, a deviation with n - 1 in the denominator
and eps added to the deviation, not to the variance. An example of equal logits has z = 0 and no gradient through its
deviation. The paper gives this term the weight 9, and `hard_labels` 0.1. Reduction: a sum over the classes, one number
per example.
"""

import jax.numpy as jnp
from jaxtyping import Array

from kd.base import ClassMask, Logits, PerExample, Schedule, at, kl, log_softmax, loss
from kd.kinds import Loss
from kd.logits import not_excluded
from kd.maps import norm
from leanax.core import ranges


def logit_standardisation(temperature: Schedule = 2.0, eps: float = 1e-7) -> Loss:
  """Distillation of standardised logits.

  Args:
    temperature: T > 0, of both softmaxes of the standardised logits, or a schedule of it.
    eps: above 0, added to the standard deviation.
  """
  ranges.check("logit_standardisation: temperature", temperature, ranges.TEMPERATURE, varies=True)
  ranges.check("logit_standardisation: eps", eps, ranges.POSITIVE)

  def standard(logits: Logits, used: ClassMask) -> Logits:
    count = jnp.sum(used, axis=-1, keepdims=True).astype(logits.dtype)
    logits = jnp.where(used, logits, 0.0)
    centred = jnp.where(used, logits - jnp.sum(logits, axis=-1, keepdims=True) / jnp.maximum(count, 1.0), 0.0)
    return centred / (norm(centred)[:, None] / jnp.sqrt(jnp.maximum(count - 1, 1.0)) + eps)

  def divergence(student: Logits, teacher: Logits, *, class_mask: ClassMask | None, step: Array | int) -> PerExample:
    t, used = at(temperature, step), not_excluded(student, teacher, class_mask)
    return t**2 * kl(*(log_softmax(standard(logits, used) / t, used) for logits in (teacher, student)))

  return loss(divergence, "logit_standardisation", reads=("class_mask", "step"))
