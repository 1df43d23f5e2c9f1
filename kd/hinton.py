"""Distillation of softened logits: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network"
(arXiv:1503.02531), section 2.

    loss_i = T^2 * sum_c p_c (log p_c - log q_c),   p = softmax(teacher_i / T),  q = softmax(student_i / T)

The paper writes the cross-entropy of the two; the divergence differs by the teacher's entropy, which has no gradient,
and is 0 where student and teacher agree. The paper advises to multiply by T^2 so that the gradient, T (q - p), keeps
its size as T changes: here it always is. Reduction: a sum over the classes, one number an example.
"""

import jax.numpy as jnp

from core.errors import UserError
from kd.base import Logits, Loss, PerExample, Where, lift, log_softmax, widen


def hinton(temperature: float = 4.0) -> Loss:
  """Hinton's loss.

  Args:
    temperature: T > 0, of both softmaxes.
  """
  if not temperature > 0:
    raise UserError(f"hinton: temperature is {temperature}; expected a number above 0")

  def divergence(student: Logits, teacher: Logits, where: Where | None) -> PerExample:
    log_p = log_softmax(widen(teacher) / temperature, where)
    log_q = log_softmax(widen(student) / temperature, where)
    p = jnp.exp(log_p)
    used = p > 0  # a class that the teacher excludes (logit -inf) would give 0 * inf
    terms = jnp.where(used, p, 0.0) * (jnp.where(used, log_p, 0.0) - jnp.where(used, log_q, 0.0))
    return temperature**2 * jnp.sum(terms, axis=-1)

  return lift(divergence, "hinton")
