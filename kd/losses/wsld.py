"""Weighted soft labels: Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff
Perspective" (arXiv:2102.00650), section 4.

    loss_i = (1 - exp(-s_i / t_i)) * T^2 * cross-entropy(softmax(teacher_i / T), softmax(student_i / T))

s_i and t_i are the student's and the teacher's cross-entropies with the label at temperature 1: an example on which the
student beats the teacher has a smaller weight. The weight has no gradient, so the cross-entropy has the gradient of
`hinton`; it is not 0 where student and teacher agree. As in the authors' code 1e-7 is added to t_i. The paper adds
`hard_labels`, and gives this term the weight 2.5. A mixed example has the average of its two labels' losses. Reduction:
a sum over the classes, one number per example.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd.base import ClassMask, Logits, PerExample, Schedule, TeacherAt, at, cross_entropy, log_softmax, loss, pick
from kd.kinds import Loss
from kd.labels import Labels
from kd.logits import by_label
from leanax.core import ranges


def wsld(temperature: Schedule = 2.0) -> Loss:
  """Weighted soft labels; needs `batch["label"]`.

  Args:
    temperature: T > 0, of the soft labels' softmaxes, or a schedule of it.
  """
  ranges.check("wsld: temperature", temperature, ranges.TEMPERATURE, varies=True)

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
    soft = cross_entropy(jnp.exp(log_softmax(teacher_at(t) / t, class_mask)), log_softmax(student / t, class_mask))
    log_p, log_q = log_softmax(teacher, class_mask), log_softmax(jax.lax.stop_gradient(student), class_mask)

    def weight(index: Array) -> PerExample:
      return -jnp.expm1(pick(log_q, index) / (1e-7 - pick(log_p, index)))

    return t**2 * soft * by_label(weight, label)

  return loss(entropy, "wsld", reads=("class_mask", "label", "step", "teacher_at"))
