"""Binary cross-entropy with the labels of independent outputs: for binary (one logit) and multi-label classification.
No paper.

    loss_i = -sum_c [y_c log q_c + (1 - y_c) log(1 - q_c)],   q = sigmoid(student_i),  y = batch["label"]_i

For a mixed example (mixup: arXiv:1710.09412) the losses of its two labels are averaged with the weights of their
images. Mask unknown labels of single outputs by `class_mask`, of whole examples by `batch["valid"]`. Reduction: a sum
over the outputs, one number per example. The temperature is 1. No teacher.
"""

from typing import Any

import jax.numpy as jnp

from kd import labels
from kd.base import PerExample, cross_entropy
from kd.inputs import read
from kd.kinds import Context, Loss, LossOut, Outputs
from kd.logits import log_bernoulli


def sigmoid_cross_entropy() -> Loss:
  """Binary cross-entropy with `batch["label"]`: bools, or numbers from 0 to 1, per output.

  Labels are (batch, *positions, outputs), or (batch, *positions) where there is one output. With `batch["mix"]`,
  (batch,) weights of the label, `batch["mix_label"]` has the weight 1 - mix.
  """
  name = "sigmoid_cross_entropy"

  def entropy(student: Outputs, teacher: Any, context: Context) -> LossOut:
    del teacher
    inputs = read(name, student.logits, None, context.batch, context.class_mask, classes=1)
    log_q, shape = log_bernoulli(inputs.student, inputs.class_mask), (*inputs.lead, inputs.student.shape[-1])

    def entropy_with(key: str) -> PerExample:
      on = labels.switches_of(name, inputs.batch, key, shape, inputs.student.dtype, inputs.counts)
      return jnp.sum(cross_entropy(jnp.stack([on, 1 - on], axis=-1), log_q), axis=-1)

    mix, wrong = labels.mix_of(name, inputs.batch, inputs.lead, inputs.valid)
    if mix is None:
      return LossOut(inputs.per_example(entropy_with("label")))
    mix = mix.astype(inputs.student.dtype)
    mixed = mix * entropy_with("label") + (1 - mix) * entropy_with("mix_label")
    return LossOut(inputs.per_example(mixed, wrong))

  return Loss(name, entropy, needs_teacher=False, reads=("logits", "class_mask", "label"))
