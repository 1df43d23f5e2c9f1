"""Distillation of independent outputs: the divergence of two Bernoulli distributions per output, for binary (one logit)
and multi-label classification. No paper: it is arXiv:1503.02531, section 2, for each output.

    loss_i = T^2 * sum_c [p_c log(p_c / q_c) + (1 - p_c) log((1 - p_c) / (1 - q_c))]
    p = sigmoid(teacher_i / T),  q = sigmoid(student_i / T)

For one output z this is `hinton` on the two logits (z, 0). T^2 as there: the gradient, T (q - p), keeps its size as T
changes. The log-sigmoids are computed directly, so large logits lose no digits. Reduction: a sum over the outputs, one
number per example.
"""

import jax.numpy as jnp
from jaxtyping import Array

from kd.base import ClassMask, Logits, PerExample, Schedule, at, kl, loss
from kd.kinds import Loss
from kd.logits import log_bernoulli
from leanax.core import ranges


def bernoulli_kl(temperature: Schedule = 4.0) -> Loss:
  """KL(teacher || student) of each output's sigmoid; one output or more.

  Args:
    temperature: T > 0, of both sigmoids, or a schedule of it.
  """
  ranges.check("bernoulli_kl: temperature", temperature, ranges.TEMPERATURE, varies=True)

  def divergence(student: Logits, teacher: Logits, *, class_mask: ClassMask | None, step: Array | int) -> PerExample:
    t = at(temperature, step)
    log_p, log_q = log_bernoulli(teacher / t, class_mask), log_bernoulli(student / t, class_mask)
    return t**2 * jnp.sum(kl(log_p, log_q), axis=-1)

  return loss(
    divergence, "bernoulli_kl", reads=("class_mask", "step"), classes=1, temperature=temperature, mean="sigmoid"
  )
