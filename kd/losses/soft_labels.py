"""Cross-entropy with a distribution over the classes: a teacher's softened one, or one from the batch (mixed or
smoothed labels).

    loss_i = -T^2 * sum_c p_c log q_c,   q = softmax(student_i / T),  p = softmax(teacher_i / T)  or
    batch["soft_label"]_i

With the teacher's distribution this is the loss of arXiv:1503.02531, section 2: `hinton` plus T^2 times the teacher's
entropy, with the same gradient. It is not 0 where student and teacher agree. Reduction: a sum over the
classes, one number per example.
"""

import jax.numpy as jnp
from jaxtyping import Array

from kd.base import ClassMask, Logits, PerExample, Schedule, at, cross_entropy, log_softmax, loss
from kd.kinds import Loss
from leanax.core import ranges
from leanax.core.errors import unknown


def soft_labels(temperature: Schedule = 1.0, source: str = "teacher") -> Loss:
  """Cross-entropy with soft labels.

  Args:
    temperature: T > 0, of the student's softmax and of the teacher's, or a schedule of it.
    source: "teacher", or "batch" for `batch["soft_label"]`, (batch, *positions, classes) probabilities, used unchanged;
      a negative one makes its example's loss NaN.
  """
  ranges.check("soft_labels: temperature", temperature, ranges.TEMPERATURE, varies=True)
  if source not in ("teacher", "batch"):
    raise unknown("source of soft labels", source, ("teacher", "batch"))

  def entropy(
    student: Logits,
    teacher: Logits | None,
    *,
    class_mask: ClassMask | None,
    step: Array | int,
    soft_label: Logits | None = None,
  ) -> PerExample:
    t = at(temperature, step)
    if soft_label is None:
      p = jnp.exp(log_softmax(teacher / t, class_mask))
    else:
      p = jnp.where(soft_label >= 0, soft_label, jnp.nan)
    return t**2 * cross_entropy(p, log_softmax(student / t, class_mask))

  alone = source == "batch"
  reads = ("class_mask", "step", "soft_label") if alone else ("class_mask", "step")
  return loss(entropy, "soft_labels", reads=reads, needs_teacher=not alone, temperature=temperature)
