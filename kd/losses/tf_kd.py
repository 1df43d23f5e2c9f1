"""Teacher-free distillation by a virtual teacher: Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing
Regularization" (arXiv:1909.11723), section 5, Tf-KD_reg.

    p_c = a for the label, (1 - a) / (K - 1) for every other class;   q = softmax(student_i)
    loss_i = KL(softmax(p / T) || q)                                   the authors' code, and the default
    loss_i = T^2 * KL(softmax(log p / T) || softmax(student_i / T))    `soften_student=True`

Implementations differ in the temperature. The authors' code takes the probabilities themselves for logits, so that at T
= 20 the target is close to uniform, keeps the student at T = 1, and divides by K, which its factor of 100 on CIFAR-100
cancels: both are omitted here. The other form is `hinton` with log p as the teacher's logits, both sides softened. The
paper gives this term the weight 0.1, and `hard_labels` 0.9.

K is the number of valid classes that the student does not exclude by a logit of -inf. A mixed example has the average
of its two labels' losses. Reduction: a sum over the classes, one number per example. No teacher.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array

from kd.base import ClassMask, Logits, PerExample, Schedule, at, kl, log_softmax, loss
from kd.kinds import Loss
from kd.labels import Labels
from kd.logits import by_label, is_label, not_excluded
from leanax.core import ranges


def tf_kd(correct: float = 0.99, temperature: Schedule = 20.0, soften_student: bool = False) -> Loss:
  """Divergence from a virtual teacher; needs `batch["label"]`.

  Args:
    correct: a, the virtual teacher's probability of the label, above 0 and below 1; 0.9 and more in the paper.
    temperature: T > 0, or a schedule of it.
    soften_student: use the second form, both sides at temperature T, in place of the authors' code.
  """
  ranges.check("tf_kd: correct", correct, ranges.INSIDE)
  ranges.check_switch("tf_kd: soften_student", soften_student)
  ranges.check("tf_kd: temperature", temperature, ranges.TEMPERATURE, varies=True)

  def divergence(
    student: Logits, teacher: None, *, class_mask: ClassMask | None, label: Labels, step: Array | int
  ) -> PerExample:
    del teacher
    t, used = at(temperature, step), not_excluded(student, class_mask=class_mask)
    others = jnp.maximum(jnp.sum(used, axis=-1, keepdims=True) - 1, 1).astype(student.dtype)
    log_q = log_softmax(student / t if soften_student else student, class_mask)

    def from_label(index: Array) -> PerExample:
      label_mask = is_label(index, student)
      log_p = jnp.where(label_mask, math.log(correct), math.log1p(-correct) - jnp.log(others))
      # The label stays a class where the student excludes it: the divergence is then infinite.
      classes = used | (label_mask if class_mask is None else label_mask & class_mask)
      log_p = log_softmax((log_p if soften_student else jnp.exp(log_p)) / t, classes)
      return kl(log_p, jnp.where(classes, log_q, 0.0))

    per_row = by_label(from_label, label)
    return t**2 * per_row if soften_student else per_row

  return loss(divergence, "tf_kd", reads=("class_mask", "label", "step"), needs_teacher=False)
