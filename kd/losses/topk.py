"""Distillation of the teacher's most likely classes, with everything else as one: the form for teachers of which only
the k best logits are kept. No paper. At temperature 1 such a store still tells it exactly. At another one it does not:
what is stored is the others' mass at temperature 1, and spread evenly that is too much above 1 and too little below.

    loss_i = T^2 * [sum over the k classes of p_c (log p_c - log q_c) + p_rest (log p_rest - log q_rest)]
    p = softmax(teacher_i / T),  q = softmax(student_i / T),  p_rest = the sum of p over the other classes

This is the divergence of the two distributions over k + 1 outcomes. So it is never negative, which the sum over the k
classes alone can be, it is never above `hinton` (grouping outcomes loses information), and it is `hinton` if k reaches
the number of classes. p_rest is a sum of logarithms, not 1 - sum. Of equally likely classes the first are kept.
Reduction: a sum over the outcomes, one number per example.
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
    k: 1 or more; all classes where there are no more.
    temperature: T > 0, of both softmaxes, or a schedule of it.
  """
  ranges.check("topk: k", k, ranges.whole(1))
  ranges.check("topk: temperature", temperature, ranges.POSITIVE, varies=True)

  def divergence(student: Logits, teacher: Logits, *, class_mask: ClassMask | None, step: Array | int) -> PerExample:
    t = at(temperature, step)
    log_p, log_q = log_softmax(teacher / t, class_mask), log_softmax(student / t, class_mask)
    counts = jnp.ones(log_p.shape, bool) if class_mask is None else jnp.broadcast_to(class_mask, log_p.shape)
    best = jax.lax.top_k(jnp.where(counts, log_p, -jnp.inf), min(k, log_p.shape[-1]))[1]
    rest = counts.at[jnp.arange(best.shape[0], dtype=best.dtype)[:, None], best].set(False)

    def outcomes(log: Logits) -> Logits:
      # Where fewer than k classes count, the others are among the best, and hold 0 in both: they add nothing.
      return jnp.concatenate([jnp.take_along_axis(log, best, axis=-1), log_sum(log, rest)[:, None]], axis=-1)

    return t**2 * kl(outcomes(log_p), outcomes(log_q))

  return loss(divergence, "topk", reads=("class_mask", "step"), temperature=temperature)
