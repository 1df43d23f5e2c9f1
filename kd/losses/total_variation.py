"""Total variation distance of the two outputs: Wen et al., "f-Divergence Minimization for Sequence-Level Knowledge
Distillation" (arXiv:2307.15190), the divergence with f(t) = |t - 1| / 2.

    loss_i = T / 2 * sum_c |p_c - q_c|,   p = softmax(teacher_i / T),  q = softmax(student_i / T)

At T = 1, as in the paper, it is at most 1. The factor is T, not T^2: the distance is of first order in the difference
of the logits, so T keeps the size of its gradient. The gradient at p_c = q_c is taken as 0. Reduction: a sum over the
classes, one number per example.
"""

import jax.numpy as jnp
from jaxtyping import Array

from kd.base import ClassMask, Logits, PerExample, Schedule, at, log_softmax, loss
from kd.kinds import Loss
from leanax.core import ranges


def total_variation(temperature: Schedule = 1.0) -> Loss:
  """Total variation distance.

  Args:
    temperature: T > 0, of both softmaxes, or a schedule of it.
  """
  ranges.check("total_variation: temperature", temperature, ranges.TEMPERATURE, varies=True)

  def distance(student: Logits, teacher: Logits, *, class_mask: ClassMask | None, step: Array | int) -> PerExample:
    t = at(temperature, step)
    p, q = jnp.exp(log_softmax(teacher / t, class_mask)), jnp.exp(log_softmax(student / t, class_mask))
    gap = p - q  # masked classes give 1 - 1
    return 0.5 * t * jnp.sum(gap * jnp.sign(gap), axis=-1)  # the gradient of |gap| would hide NaN

  return loss(distance, "total_variation", reads=("class_mask", "step"), temperature=temperature)
