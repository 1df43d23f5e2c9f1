"""Cross-entropy with a distribution over the classes: a teacher's softened one, or one that the batch brings (mixed
or smoothed labels).

    loss_i = -T^2 * sum_c p_c log q_c,   q = softmax(student_i / T),  p = softmax(teacher_i / T)  or
    batch["soft_label"]_i

With the teacher's distribution this is what arXiv:1503.02531, section 2, writes down: `hinton` plus T^2 times the
teacher's entropy, the same gradient. It is therefore not 0 where student and teacher agree. Reduction: a sum over the
classes, one number an example.
"""

import jax
import jax.numpy as jnp

from core import ranges
from core.errors import UserError, unknown
from kd.base import Loss, Schedule, at, cross_entropy, log_softmax, logits_of, teacher_logits, widen


def soft_labels(temperature: Schedule = 1.0, source: str = "teacher") -> Loss:
  """Cross-entropy with soft labels.

  Args:
    temperature: T > 0, of the student's softmax and of the teacher's, or a schedule of it.
    source: "teacher", or "batch" for `batch["soft_label"]`, (batch, classes) probabilities, used as they are.
  """
  ranges.check("soft_labels: temperature", temperature, ranges.POSITIVE, varies=True)
  if source not in ("teacher", "batch"):
    raise unknown("source of soft labels", source, ("teacher", "batch"))

  def loss(
    student, teacher=None, batch=None, *, aux=None, aux_state=None, key=None, axis_name=None, class_mask=None, step=0
  ):
    del aux, key, axis_name
    t = at(temperature, step)
    log_q = log_softmax(widen(logits_of(student)) / t, class_mask)
    if source == "teacher":
      p = jnp.exp(log_softmax(widen(teacher_logits(teacher, "soft_labels")) / t, class_mask))
    elif batch is None or "soft_label" not in batch:
      raise UserError("the loss 'soft_labels' with source 'batch' needs a batch with 'soft_label': (batch, classes)")
    else:
      p = jax.lax.stop_gradient(batch["soft_label"]).astype(log_q.dtype)
    return t**2 * cross_entropy(p, log_q), aux_state, {}

  loss.needs_teacher = source == "teacher"  # pyrefly: ignore
  return loss
