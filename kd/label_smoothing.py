"""The classification loss with smoothed labels: Szegedy et al., "Rethinking the Inception Architecture for Computer
Vision" (arXiv:1512.00567), section 7.

    loss_i = (1 - epsilon) * (-log q_label) + epsilon * mean_c(-log q_c),   q = softmax(student_i)

Variant: the paper's, epsilon spread over all K classes, the label's among them; where others spread it over the K - 1
other classes their epsilon is ours times (K - 1) / K. K counts the classes that count. Of a mixed example (mixup) the
two labels' losses are averaged with the weights of their images. Reduction: one number an example. No teacher is read.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from core import ranges
from kd.base import Outputs, log_softmax, pick
from kd.logits import by_label
from kd.taps import About, TapLoss


def label_smoothing(smoothing: float = 0.1) -> TapLoss:
  """Cross-entropy with `batch["label"]`, smoothed.

  Args:
    smoothing: epsilon, 0 or more and below 1; 0 is `hard_labels`.
  """
  ranges.check("label_smoothing: smoothing", smoothing, ranges.BELOW_ONE)

  def fn(student: Outputs, teacher: Any, about: About) -> tuple[Array, Any, dict[str, Array]]:
    del teacher
    log_q = log_softmax(student.logits, about.class_mask)
    used = jnp.ones(log_q.shape, bool) if about.class_mask is None else jnp.broadcast_to(about.class_mask, log_q.shape)
    mean = jnp.sum(log_q, axis=-1) / jnp.maximum(jnp.sum(used, axis=-1), 1).astype(log_q.dtype)
    sharp = by_label(lambda labels: pick(log_q, labels), about.batch, "label_smoothing")
    return -(1 - smoothing) * sharp - smoothing * mean, about.aux_state, {}

  return TapLoss("label_smoothing", fn, needs_teacher=False)
