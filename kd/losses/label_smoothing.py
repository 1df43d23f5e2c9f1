"""The classification loss with smoothed labels: Szegedy et al., "Rethinking the Inception Architecture for Computer
Vision" (arXiv:1512.00567), section 7.

    loss_i = (1 - epsilon) * (-log q_label) + epsilon * mean_c(-log q_c),   q = softmax(student_i)

Variant: the paper's, epsilon spread over all K classes, the label included; implementations that spread it over the
K - 1 other classes have our epsilon times (K - 1) / K. K is the number of valid classes that the student does not
exclude by a logit of -inf. For a mixed example (mixup) the losses of its two labels are averaged with the weights of
their images. Reduction: one number per example. No teacher.
"""

import jax.numpy as jnp

from kd.base import ClassMask, Logits, PerExample, log_softmax, loss, pick
from kd.kinds import Loss
from kd.labels import Labels
from kd.logits import by_label, not_excluded
from leanax.core import ranges


def label_smoothing(smoothing: float = 0.1) -> Loss:
  """Cross-entropy with `batch["label"]`, smoothed.

  Args:
    smoothing: epsilon, 0 or more and below 1; 0 is `hard_labels`.
  """
  ranges.check("label_smoothing: smoothing", smoothing, ranges.BELOW_ONE)

  def entropy(student: Logits, teacher: None, *, class_mask: ClassMask | None, label: Labels) -> PerExample:
    del teacher
    log_q, used = log_softmax(student, class_mask), not_excluded(student, class_mask=class_mask)
    total = jnp.sum(jnp.where(used, log_q, 0.0), axis=-1)
    mean = total / jnp.maximum(jnp.sum(used, axis=-1), 1).astype(log_q.dtype)
    sharp = by_label(lambda index: pick(log_q, index), label)
    return -(1 - smoothing) * sharp - smoothing * mean

  return loss(entropy, "label_smoothing", reads=("class_mask", "label"), needs_teacher=False)
