"""The classification loss itself, cross-entropy with the true class, as a term beside distillation.

    loss_i = -log softmax(student_i)[label_i]

Reduction: one number an example. The temperature is 1, as in section 2 of arXiv:1503.02531. The teacher is not read.
"""

from core.errors import UserError
from kd.base import Loss, log_softmax, logits_of, pick


def hard_labels() -> Loss:
  """Cross-entropy with `batch["label"]`, (batch,) integers."""

  def loss(student, teacher=None, batch=None, *, aux=None, aux_state=None, key=None, axis_name=None, where=None):
    del teacher, aux, key, axis_name
    if batch is None or "label" not in batch:
      raise UserError("the loss 'hard_labels' needs a batch with 'label': (batch,) integers")
    return -pick(log_softmax(logits_of(student), where), batch["label"]), aux_state, {}

  return loss
