"""Normalised distillation: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach
with Normalized Loss and Customized Soft Labels" (arXiv:2303.13005), the loss NKD.

    loss_i = -p_label log q_label  -  gamma T^2 sum over other classes of N(p)_c log N(q)_c

p and q are the softmaxes of teacher and student at temperature 1, N(p) and N(q) those over the classes other than the
label at temperature T. Both parts are cross-entropies, so the loss is not 0 where student and teacher agree; the first
is smallest at q_label = 1. The paper adds `hard_labels`. A mixed example has the average of its two labels' losses.
Reduction: a sum over the classes, one number per example.
"""

import jax.numpy as jnp
from jaxtyping import Array

from kd.base import ClassMask, Logits, PerExample, Schedule, TeacherAt, at, cross_entropy, log_softmax, loss, pick
from kd.kinds import Loss
from kd.labels import Labels
from kd.logits import by_label, is_label, not_excluded
from leanax.core import ranges


def nkd(gamma: float = 1.5, temperature: Schedule = 1.0) -> Loss:
  """Normalised distillation; needs `batch["label"]`.

  Args:
    gamma: 0 or more, the weight of the other classes' part.
    temperature: T > 0, of the softmaxes over the other classes, or a schedule of it.
  """
  ranges.check("nkd: gamma", gamma, ranges.NOT_NEGATIVE)
  ranges.check("nkd: temperature", temperature, ranges.TEMPERATURE, varies=True)

  def entropy(
    student: Logits,
    teacher: Logits,
    *,
    class_mask: ClassMask | None,
    label: Labels,
    step: Array | int,
    teacher_at: TeacherAt,
  ) -> PerExample:
    t = at(temperature, step)
    used = not_excluded(student, teacher, class_mask)
    log_p, log_q = log_softmax(teacher, class_mask), log_softmax(student, class_mask)

    def parts(index: Array) -> PerExample:
      others = used & ~is_label(index, student)
      target = -jnp.exp(pick(log_p, index)) * pick(log_q, index)
      n_p = jnp.exp(log_softmax(teacher_at(t) / t, others))
      return target + gamma * t**2 * cross_entropy(n_p, log_softmax(student / t, others))

    return by_label(parts, label)

  return loss(entropy, "nkd", reads=("class_mask", "label", "step", "teacher_at"))
