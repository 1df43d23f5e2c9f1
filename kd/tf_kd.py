"""Teacher-free distillation by a virtual teacher: Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing
Regularization" (arXiv:1909.11723), section 5, Tf-KD_reg.

    p_c = a for the label, (1 - a) / (K - 1) for every other class;   q = softmax(student_i)
    loss_i = KL(softmax(p / T) || q)                                   the authors' code, and the default
    loss_i = T^2 * KL(softmax(log p / T) || softmax(student_i / T))    `soften_student=True`

Peers differ in what the temperature does. The authors' code takes the probabilities themselves for
logits, so that at T = 20 the target is close to uniform, leaves the student at T = 1, and divides by K, which its
factor of 100 on CIFAR-100 undoes: that factor and that division are left out here. The other form is
`hinton`'s with log p as the teacher's logits, both sides softened. The paper gives this term the weight 0.1, and
`hard_labels` 0.9.

K counts the classes that count. A mixed example has the average of its two labels' losses. Reduction: a sum over the
classes, one number an example. No teacher is read.
"""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from core import ranges
from kd.base import Outputs, Schedule, at, kl, log_softmax
from kd.logits import by_label, is_label
from kd.taps import About, TapLoss


def tf_kd(correct: float = 0.99, temperature: Schedule = 20.0, soften_student: bool = False) -> TapLoss:
  """Divergence from a virtual teacher; needs `batch["label"]`.

  Args:
    correct: a, the virtual teacher's probability of the label, above 0 and below 1; the paper has 0.9 and more.
    temperature: T > 0, or a schedule of it.
    soften_student: the second form, both sides at temperature T, in place of the authors' code.
  """
  ranges.check("tf_kd: correct", correct, ranges.INSIDE)
  ranges.check("tf_kd: temperature", temperature, ranges.POSITIVE, varies=True)

  def fn(student: Outputs, teacher: Any, about: About) -> tuple[Array, Any, dict[str, Array]]:
    del teacher
    t, logits, class_mask = at(temperature, about.step), student.logits, about.class_mask
    used = jnp.ones(logits.shape, bool) if class_mask is None else jnp.broadcast_to(class_mask, logits.shape)
    others = jnp.maximum(jnp.sum(used, axis=-1, keepdims=True) - 1, 1).astype(logits.dtype)
    log_q = log_softmax(logits / t if soften_student else logits, class_mask)

    def divergence(labels: Array) -> Array:
      log_p = jnp.where(is_label(labels, logits), math.log(correct), math.log1p(-correct) - jnp.log(others))
      return kl(log_softmax((log_p if soften_student else jnp.exp(log_p)) / t, class_mask), log_q)

    per_example = by_label(divergence, about.batch, "tf_kd")
    return t**2 * per_example if soften_student else per_example, about.aux_state, {}

  return TapLoss("tf_kd", fn, needs_teacher=False)
