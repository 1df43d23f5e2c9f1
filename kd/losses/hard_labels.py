"""The classification loss itself, cross-entropy with the true class, as a term beside distillation. No paper.

    loss_i = -log softmax(student_i)[label_i]

For a mixed example (mixup: arXiv:1710.09412) the losses of its two labels are averaged with the weights of their
images. Reduction: one number per example. The temperature is 1, as in section 2 of arXiv:1503.02531. No teacher.
"""

from kd.base import ClassMask, Logits, PerExample, log_softmax, loss, pick
from kd.kinds import Loss
from kd.labels import Labels
from kd.logits import by_label


def hard_labels() -> Loss:
  """Cross-entropy with `batch["label"]`, (batch, *positions) integers.

  With `batch["mix"]`, (batch,) weights of the label, `batch["mix_label"]` has the weight 1 - mix.
  """

  def entropy(student: Logits, teacher: None, *, class_mask: ClassMask | None, label: Labels) -> PerExample:
    del teacher
    log_q = log_softmax(student, class_mask)
    return by_label(lambda index: -pick(log_q, index), label)

  return loss(entropy, "hard_labels", reads=("class_mask", "label"), needs_teacher=False)
