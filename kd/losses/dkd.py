"""Decoupled distillation: Zhao et al., "Decoupled Knowledge Distillation" (arXiv:2203.08679), equation 7.

    loss_i = T^2 * [alpha TCKD + beta NCKD]
    TCKD = KL of the two outcomes (label, any other class);   NCKD = KL over the other classes, renormalised
    of p = softmax(teacher_i / T) and q = softmax(student_i / T)

With alpha = 1 and beta = 1 - p_label this is `hinton` (equation 6): the paper replaces that weight of NCKD, which is
small where the teacher is confident. Sums over the other classes are computed in logarithms. T^2 as in the authors'
code; for their warm-up use a schedule of the term's weight. A mixed example has the average of its two labels' losses.
Reduction: sums over the classes, one number per example.
"""

import jax.numpy as jnp
from jaxtyping import Array

from kd.base import ClassMask, Logits, PerExample, Schedule, at, kl, log_softmax, loss, pick
from kd.kinds import Loss
from kd.labels import Labels
from kd.logits import by_label, is_label, log_sum, not_excluded
from leanax.core import ranges


def dkd(alpha: float = 1.0, beta: float = 8.0, temperature: Schedule = 4.0) -> Loss:
  """Decoupled distillation; needs `batch["label"]`.

  Args:
    alpha: 0 or more, the weight of the target's part.
    beta: 0 or more, the weight of the other classes' part; 1 to 10 in the paper.
    temperature: T > 0, of all softmaxes, or a schedule of it.
  """
  ranges.check("dkd: alpha", alpha, ranges.NOT_NEGATIVE)
  ranges.check("dkd: beta", beta, ranges.NOT_NEGATIVE)
  ranges.check("dkd: temperature", temperature, ranges.TEMPERATURE, varies=True)

  def divergence(
    student: Logits, teacher: Logits, *, class_mask: ClassMask | None, label: Labels, step: Array | int
  ) -> PerExample:
    t = at(temperature, step)
    student, teacher = student / t, teacher / t
    used = not_excluded(student, teacher, class_mask)
    log_p, log_q = log_softmax(teacher, class_mask), log_softmax(student, class_mask)

    def parts(index: Array) -> PerExample:
      others = used & ~is_label(index, student)
      target = kl(*(jnp.stack([pick(log, index), log_sum(log, others)], axis=-1) for log in (log_p, log_q)))
      return alpha * target + beta * kl(log_softmax(teacher, others), log_softmax(student, others))

    return t**2 * by_label(parts, label)

  return loss(divergence, "dkd", reads=("class_mask", "label", "step"), temperature=temperature)
