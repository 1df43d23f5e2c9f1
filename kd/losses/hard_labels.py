"""The classification loss itself, cross-entropy with the true class, as a term beside distillation. No paper.

    loss_i = -log softmax(student_i)[label_i]

For a mixed example (mixup: arXiv:1710.09412) the losses of its two labels are averaged with the weights of their
images. With class weights w the loss of a label is w[label] times that, so that a mean over examples is not divided by
their weights. Reduction: one number per example. The temperature is 1, as in section 2 of arXiv:1503.02531. No teacher.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from kd.base import ClassMask, Logits, PerExample, log_softmax, loss, pick
from kd.kinds import Loss
from kd.labels import Labels
from kd.logits import by_label
from leanax.core import ranges
from leanax.core.errors import UserError


def hard_labels(class_weights: Sequence[float] = ()) -> Loss:
  """Cross-entropy with `batch["label"]`, (batch, *positions) integers.

  With `batch["mix"]`, (batch,) weights of the label, `batch["mix_label"]` has the weight 1 - mix.

  Args:
    class_weights: a factor of the loss of each class, (classes,), 0 or more; () for 1. In a config "balanced" is
      N / (K n) of a class with n of the N examples of K classes.
  """
  if isinstance(class_weights, str) or not isinstance(class_weights, Sequence):
    raise UserError(f"hard_labels: class_weights is {class_weights!r}; expected a number for each class")
  for index, weight in enumerate(class_weights):
    ranges.check(f"hard_labels: class_weights[{index}]", weight, ranges.NOT_NEGATIVE)

  def entropy(student: Logits, teacher: None, *, class_mask: ClassMask | None, label: Labels) -> PerExample:
    del teacher
    log_q = log_softmax(student, class_mask)
    if not class_weights:
      return by_label(lambda index: -pick(log_q, index), label)
    if len(class_weights) != student.shape[-1]:
      raise UserError(
        f"hard_labels: class_weights has {len(class_weights)} numbers; expected {student.shape[-1]}, one for each class"
      )
    weights = jnp.asarray(class_weights, log_q.dtype)
    return by_label(lambda index: -weights[index] * pick(log_q, index), label)

  return loss(entropy, "hard_labels", reads=("class_mask", "label"), needs_teacher=False)
