"""A learned temperature that makes the task harder: Li, Li, Yang, Zhao, Song, Luo, Li, Yang, "Curriculum Temperature
for Knowledge Distillation" (arXiv:2211.16231), equations 3 to 6, the global temperature.

    T = low + span * sigmoid(g);   loss_i = T^2 KL(softmax(teacher_i / T) || softmax(student_i / T))

g is one trained number. Its gradient is reversed and scaled by

    lambda(step) = largest * (1 - cos(pi min(step / steps, 1))) / 2

so that training maximises the loss over T with growing strength. g starts at 1, low is 1 and span 20, as in the
authors' code. Their lambda changes once per epoch, over 10 epochs; here it changes at each step. Reduction: a sum over
the classes, one number per example. The temperature is logged.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kd.base import kl, log_softmax, teacher_at
from kd.inputs import read
from kd.kinds import Context, Loss, LossOut, Outputs
from leanax.core import ranges


def ctkd(steps: int = 7820, low: float = 1.0, span: float = 20.0, largest: float = 1.0) -> Loss:
  """Hinton's loss at a temperature that is trained against the student.

  Args:
    steps: updates until the reversed gradient has its full size; the default is the authors' 10 epochs of 50,000
      examples in batches of 64.
    low: lower bound of the temperature.
    span: low + span is the upper bound.
    largest: the final size of the reversed gradient; 0 keeps the initial temperature.
  """
  ranges.check("ctkd: steps", steps, ranges.whole(1))
  ranges.check("ctkd: low", low, ranges.TEMPERATURE)
  ranges.check("ctkd: span", span, ranges.TEMPERATURE)
  ranges.check("ctkd: largest", largest, ranges.NOT_NEGATIVE)

  def loss(s: Outputs, t: Outputs, context: Context) -> LossOut:
    given = read("ctkd", s.logits, t.logits, context.batch, context.class_mask)
    dtype = given.student.dtype
    fraction = jnp.minimum(jnp.asarray(context.step, dtype) / steps, 1.0)
    strength = largest * 0.5 * (1 - jnp.cos(np.pi * fraction))
    g = reverse(context.aux["temperature"].astype(dtype), strength)
    temperature = low + span * jax.nn.sigmoid(g)
    tau = jax.lax.stop_gradient(temperature)  # an ensemble's mean is constant in g, too
    teacher_logits = teacher_at(t, tau, context.class_mask, loss="ctkd")
    teacher = read("ctkd", s.logits, teacher_logits, context.batch, context.class_mask).teacher
    assert teacher is not None
    log_q, log_p = (
      log_softmax(over(x, temperature, given.class_mask), given.class_mask) for x in (given.student, teacher)
    )
    logs = {"temperature": jnp.full(given.lead, temperature)}
    return LossOut(given.per_example(temperature**2 * kl(log_p, log_q)), logs=jax.lax.stop_gradient(logs))

  def init(key: Array, s: Outputs, t: Outputs, variables: Any) -> tuple[Any, Any]:
    del key, s, t, variables
    return {"temperature": jnp.ones((), jnp.float32)}, None

  return Loss("ctkd", loss, reads=("logits", "class_mask"), init_fn=init)


def over(logits: Array, temperature: Array, class_mask: Array | None) -> Array:
  """Divides logits by a trained temperature, without the NaN gradient of an excluded class."""
  out = logits == -jnp.inf
  out = out if class_mask is None else out | ~class_mask
  return jnp.where(out, -jnp.inf, jnp.where(out, 0.0, logits) / temperature)


def reverse(x: Array, strength: Array) -> Array:
  """Returns x; its gradient is multiplied by -strength (Ganin and Lempitsky, arXiv:1409.7495)."""
  kept = jax.lax.stop_gradient(x)
  return kept - jax.lax.stop_gradient(strength) * (x - kept)
