"""Distillation of softened logits: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network"
(arXiv:1503.02531), section 2.

    loss_i = T^2 * sum_c p_c (log p_c - log q_c),   p = softmax(teacher_i / T),  q = softmax(student_i / T)

The paper has the cross-entropy; the divergence differs by the teacher's entropy, which has no gradient, and is 0 where
student and teacher agree. The factor T^2, which the paper recommends, keeps the size of the gradient, T (q - p), as T
changes. Reduction: a sum over the classes, one number per example.
"""

from jaxtyping import Array

from kd.base import ClassMask, Logits, PerExample, Schedule, at, kl, log_softmax, loss
from kd.kinds import Loss
from leanax.core import ranges


def hinton(temperature: Schedule = 4.0) -> Loss:
  """Hinton's loss.

  Args:
    temperature: T > 0, of both softmaxes, or a schedule of it.
  """
  ranges.check("hinton: temperature", temperature, ranges.TEMPERATURE, varies=True)

  def divergence(student: Logits, teacher: Logits, *, class_mask: ClassMask | None, step: Array | int) -> PerExample:
    t = at(temperature, step)
    return t**2 * kl(log_softmax(teacher / t, class_mask), log_softmax(student / t, class_mask))

  return loss(divergence, "hinton", reads=("class_mask", "step"), temperature=temperature)
