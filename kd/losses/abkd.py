"""Alpha-beta divergence: Wang et al., "ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge
Distillation via alpha-beta-Divergence" (arXiv:2505.04560), with alpha, beta > 0.

    loss_i = T^2 / (alpha beta) * sum_c [a p_c^s + b q_c^s - p_c^alpha q_c^beta]
    s = alpha + beta,  a = alpha / s,  b = beta / s,  p = softmax(teacher_i / T),  q = softmax(student_i / T)

As (alpha, beta) tends to (1, 0) this is `hinton`, as it tends to (0, 1) `reverse_kl`: a large alpha follows the
teacher's likely classes, a large beta the student's own. It is finite whichever network excludes a class. T^2 as in
`hinton`; the defaults are ours. Reduction: a sum over the classes, one number per example.
"""

import jax.numpy as jnp
from jaxtyping import Array

from kd.base import ClassMask, Logits, PerExample, Schedule, at, log_softmax, loss
from kd.kinds import Loss
from leanax.core import ranges


def abkd(alpha: float = 0.8, beta: float = 0.2, temperature: Schedule = 4.0) -> Loss:
  """Alpha-beta divergence.

  Args:
    alpha: above 0, the power of the teacher's probabilities.
    beta: above 0, the power of the student's.
    temperature: T > 0, of both softmaxes, or a schedule of it.
  """
  ranges.check("abkd: alpha", alpha, ranges.POSITIVE)
  ranges.check("abkd: beta", beta, ranges.POSITIVE)
  ranges.check("abkd: temperature", temperature, ranges.TEMPERATURE, varies=True)
  power, share = alpha + beta, alpha / (alpha + beta)

  def divergence(student: Logits, teacher: Logits, *, class_mask: ClassMask | None, step: Array | int) -> PerExample:
    t = at(temperature, step)
    u, v = (power * log_softmax(logits / t, class_mask) for logits in (teacher, student))
    excluded = (u == -jnp.inf) & (v == -jnp.inf)  # by both networks
    u, v = jnp.where(excluded, 0.0, u), jnp.where(excluded, 0.0, v)
    # The larger probability is factored out, so that no exponential overflows.
    below, above = jnp.where(u <= v, u - v, 0.0), jnp.where(u <= v, 0.0, v - u)
    of_student = jnp.exp(v) * (share * jnp.expm1(below) - jnp.expm1(share * below))
    of_teacher = jnp.exp(u) * ((1 - share) * jnp.expm1(above) - jnp.expm1((1 - share) * above))
    return t**2 / (alpha * beta) * jnp.sum(jnp.where(u <= v, of_student, of_teacher), axis=-1)

  return loss(divergence, "abkd", reads=("class_mask", "step"), temperature=temperature)
