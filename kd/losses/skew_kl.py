"""Skew divergences: Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models"
(arXiv:2402.03898), section 3.1.

    skew KL:          loss_i = T^2 * KL(p || alpha p + (1 - alpha) q)
    skew reverse KL:  loss_i = T^2 * KL(q || (1 - alpha) p + alpha q)
    p = softmax(teacher_i / T),  q = softmax(student_i / T)

The weight alpha of the first argument in the mixture bounds the divergence, by log(1 / alpha), and its gradient. As
alpha tends to 0 these are `hinton` and `reverse_kl`. Variant: the whole divergence; the authors' code omits the
teacher's entropy in the first form, which has no gradient. T^2 as in `hinton`; the paper has T = 1. Reduction: a sum
over the classes, one number per example.
"""

from jaxtyping import Array

from kd.base import ClassMask, Logits, PerExample, Schedule, at, kl, log_softmax, loss
from kd.kinds import Loss
from kd.logits import log_mixture
from leanax.core import ranges


def skew_kl(alpha: float = 0.1, reverse: bool = False, temperature: Schedule = 1.0) -> Loss:
  """Skew divergence.

  Args:
    alpha: above 0 and below 1; the paper's is 0.1.
    reverse: use the skew reverse KL in place of the skew KL.
    temperature: T > 0, of both softmaxes, or a schedule of it.
  """
  ranges.check("skew_kl: alpha", alpha, ranges.INSIDE)
  ranges.check_switch("skew_kl: reverse", reverse)
  ranges.check("skew_kl: temperature", temperature, ranges.TEMPERATURE, varies=True)

  def divergence(student: Logits, teacher: Logits, *, class_mask: ClassMask | None, step: Array | int) -> PerExample:
    t = at(temperature, step)
    log_p, log_q = log_softmax(teacher / t, class_mask), log_softmax(student / t, class_mask)
    first, second = (log_q, log_p) if reverse else (log_p, log_q)
    return t**2 * kl(first, log_mixture(first, second, alpha, class_mask))

  return loss(divergence, "skew_kl", reads=("class_mask", "step"), temperature=temperature)
