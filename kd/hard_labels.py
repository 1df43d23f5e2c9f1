"""The classification loss itself, cross-entropy with the true class, as a term beside distillation. No paper.

    loss_i = -log softmax(student_i)[label_i]

Of a mixed example (mixup: arXiv:1710.09412) the two labels' losses are averaged with the weights of their images.

Reduction: one number an example. The temperature is 1, as in section 2 of arXiv:1503.02531. The teacher is not read.
"""

from core.errors import UserError
from kd.base import Loss, log_softmax, logits_of, pick


def hard_labels() -> Loss:
  """Cross-entropy with `batch["label"]`, (batch,) integers.

  Where the batch holds "mix", (batch,) weights of the label, the rest of the weight is that of `batch["mix_label"]`.
  """

  def loss(
    student, teacher=None, batch=None, *, aux=None, aux_state=None, key=None, axis_name=None, class_mask=None, step=0
  ):
    del teacher, aux, key, axis_name, step
    if batch is None or "label" not in batch:
      raise UserError("the loss 'hard_labels' needs a batch with 'label': (batch,) integers")
    log_q = log_softmax(logits_of(student), class_mask)
    per_example = -pick(log_q, batch["label"])
    if "mix" in batch:
      weight = batch["mix"].astype(log_q.dtype)
      per_example = weight * per_example - (1 - weight) * pick(log_q, batch["mix_label"])
    return per_example, aux_state, {}

  loss.needs_teacher = False  # pyrefly: ignore
  return loss
