"""Distillation of the teacher's k most likely classes and of the rest as one class, for teachers of which only the top
k logits are stored. No paper. It is exact for such a store at temperature 1; the store keeps the rest's mass at
temperature 1 only, which, spread evenly, is too large above 1 and too small below.

    loss_i = T^2 * [sum over the k classes of p_c (log p_c - log q_c) + p_rest (log p_rest - log q_rest)]
    p = softmax(teacher_i / T),  q = softmax(student_i / T),  p_rest = the sum of p over the other classes

This is the divergence of two distributions over k + 1 outcomes. It is never negative, unlike the sum over the k classes
alone, never above `hinton` (grouping outcomes loses information), and equals `hinton` if k is the number of classes.
log p_rest is a log-sum-exp, not log(1 - sum). Of equally likely classes the first are kept. Reduction: a sum over the
outcomes, one number per example.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd.base import ClassMask, Logits, PerExample, Schedule, at, kl, log_softmax, loss
from kd.kinds import Loss
from kd.logits import log_sum
from leanax.core import ranges


def topk(k: int = 10, temperature: Schedule = 4.0) -> Loss:
  """Divergence of the teacher's k most likely classes and the rest.

  Args:
    k: 1 or more; at most the number of classes is used.
    temperature: T > 0, of both softmaxes, or a schedule of it.
  """
  ranges.check("topk: k", k, ranges.whole(1))
  ranges.check("topk: temperature", temperature, ranges.TEMPERATURE, varies=True)

  def divergence(student: Logits, teacher: Logits, *, class_mask: ClassMask | None, step: Array | int) -> PerExample:
    t = at(temperature, step)
    log_p, log_q = log_softmax(teacher / t, class_mask), log_softmax(student / t, class_mask)
    counts = jnp.ones(log_p.shape, bool) if class_mask is None else jnp.broadcast_to(class_mask, log_p.shape)
    best = jax.lax.top_k(jnp.where(counts, log_p, -jnp.inf), min(k, log_p.shape[-1]))[1]
    rest = counts.at[jnp.arange(best.shape[0], dtype=best.dtype)[:, None], best].set(False)

    def outcomes(log: Logits) -> Logits:
      # With fewer than k valid classes, masked ones are among the top k; they hold 0 in both and add nothing.
      return jnp.concatenate([jnp.take_along_axis(log, best, axis=-1), log_sum(log, rest)[:, None]], axis=-1)

    return t**2 * kl(outcomes(log_p), outcomes(log_q))

  return loss(divergence, "topk", reads=("class_mask", "step"), temperature=temperature)
