"""The classification loss of outputs that stand alone, binary cross-entropy with the labels: for a network with one
logit, and for several labels at once. No paper.

    loss_i = -sum_c [y_c log q_c + (1 - y_c) log(1 - q_c)],   q = sigmoid(student_i),  y = batch["label"]_i

Of a mixed example (mixup: arXiv:1710.09412) the two labels' losses are averaged with the weights of their images. A
label that is not known of an output leaves the loss by `class_mask`, that of an example by `batch["valid"]`. Reduction:
a sum over the outputs, one number per example. The temperature is 1. The teacher is not read.
"""

from typing import Any

import jax.numpy as jnp

from kd import labels
from kd.base import PerExample, cross_entropy
from kd.inputs import read
from kd.kinds import Context, Loss, LossOut, Outputs
from kd.logits import log_bernoulli


def sigmoid_cross_entropy() -> Loss:
  """Binary cross-entropy with `batch["label"]`: for each output whether it is on, bools or numbers from 0 to 1.

  Labels are (batch, *positions, outputs), or (batch, *positions) where there is one output. Where the batch holds
  "mix", (batch,) weights of the label, the rest of the weight is that of `batch["mix_label"]`.
  """
  name = "sigmoid_cross_entropy"

  def entropy(student: Outputs, teacher: Any, context: Context) -> LossOut:
    del teacher
    inputs = read(name, student.logits, None, context.batch, context.class_mask, classes=1)
    log_q, shape = log_bernoulli(inputs.student, inputs.class_mask), (*inputs.lead, inputs.student.shape[-1])

    def of(key: str) -> PerExample:
      on = labels.switches_of(name, inputs.batch, key, shape, inputs.student.dtype, inputs.counts)
      return jnp.sum(cross_entropy(jnp.stack([on, 1 - on], axis=-1), log_q), axis=-1)

    mix, wrong = labels.mix_of(name, inputs.batch, inputs.lead, inputs.valid)
    if mix is None:
      return LossOut(inputs.numbers(of("label")))
    mix = mix.astype(inputs.student.dtype)
    return LossOut(inputs.numbers(mix * of("label") + (1 - mix) * of("mix_label"), wrong))

  return Loss(name, entropy, needs_teacher=False, reads=("logits", "class_mask", "label"))
