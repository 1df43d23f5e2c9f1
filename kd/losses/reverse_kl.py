"""Reverse Kullback-Leibler divergence: the student's expectation in place of the teacher's, as in Gu et al., "MiniLLM"
(arXiv:2306.08543), equation 1, here exact for one classification.

    loss_i = T^2 * sum_c q_c (log q_c - log p_c),   p = softmax(teacher_i / T),  q = softmax(student_i / T)

It penalises probability where the teacher has none, so a small student covers some of the teacher's classes, where
`hinton` covers all. T^2 as in `hinton`; the paper has T = 1. Reduction: a sum over the classes, one number per example.
"""

from jaxtyping import Array

from kd.base import ClassMask, Logits, PerExample, Schedule, at, kl, log_softmax, loss
from kd.kinds import Loss
from leanax.core import ranges


def reverse_kl(temperature: Schedule = 1.0) -> Loss:
  """Reverse divergence, KL(student || teacher).

  Args:
    temperature: T > 0, of both softmaxes, or a schedule of it.
  """
  ranges.check("reverse_kl: temperature", temperature, ranges.TEMPERATURE, varies=True)

  def divergence(student: Logits, teacher: Logits, *, class_mask: ClassMask | None, step: Array | int) -> PerExample:
    t = at(temperature, step)
    return t**2 * kl(log_softmax(student / t, class_mask), log_softmax(teacher / t, class_mask))

  return loss(divergence, "reverse_kl", reads=("class_mask", "step"), temperature=temperature)
