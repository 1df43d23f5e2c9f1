"""Multi-level logit distillation: Jin, Wang, Lin, "Multi-Level Logit Distillation" (CVPR 2023), equations 3 to 8.

    p = softmax(teacher / T),  q = softmax(student / T),  B examples, C classes
    loss = sum over T of  T^2 mean_i KL(p_i || q_i)                 instances
                        + ||p p' - q q'||_F^2 / B                   the batch's Gram
                        + ||p' p - q' q||_F^2 / C                   the classes' Gram

Variant: no masks. The authors' code multiplies the reduced losses by the fraction of the less confident examples (about
1/2), and takes some terms from a second, stronger view; for several views use one term per view. Only the instances
have the factor T^2, as in their code. The Grams are not divided further, as in the paper: that of the classes grows
with B^2. The batch is that of all devices; for logits (batch, *positions, classes) every position is an example, and B
is batch times positions. Reduction: one number per example, its divergence and its row of the batch's Gram; all have
the same classes' Gram.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from kd.base import ClassMask, Logits, PerExample, Schedule, TeacherAt, at, kl, log_softmax, loss
from kd.kinds import Context, Loss
from kd.logits import not_excluded
from kd.relations import rows
from leanax.core import axis, ranges
from leanax.core.errors import UserError


def mlkd(
  temperatures: Sequence[Schedule] = (2.0, 3.0, 4.0, 5.0, 6.0),
  instance: float = 1.0,
  batch_gram: float = 1.0,
  class_gram: float = 1.0,
) -> Loss:
  """Divergences and Gram matrices of the softened logits.

  Args:
    temperatures: of the sum, each T > 0 or a schedule of it.
    instance: weight of the divergences.
    batch_gram: weight of the Gram between examples.
    class_gram: weight of the Gram between classes.
  """
  if not isinstance(temperatures, Sequence) or isinstance(temperatures, str) or not temperatures:
    raise UserError(f"mlkd: temperatures is {temperatures!r}; expected a sequence of one or more, such as (2.0, 4.0)")
  for index, temperature in enumerate(temperatures):
    ranges.check(f"mlkd: temperatures[{index}]", temperature, ranges.TEMPERATURE, varies=True)
  for key, weight in {"instance": instance, "batch_gram": batch_gram, "class_gram": class_gram}.items():
    ranges.check(f"mlkd: {key}", weight, ranges.NOT_NEGATIVE)

  def levels(
    student: Logits,
    teacher: Logits,
    *,
    class_mask: ClassMask | None,
    valid: Array | None,
    axis_name: str | None,
    step: Array | int,
    teacher_at: TeacherAt,
  ) -> PerExample:
    context = Context({"valid": valid}, axis_name=axis_name, loss="mlkd")
    used = not_excluded(student, teacher, class_mask)
    counts = used if valid is None else used & valid[:, None]
    wide = axis.pmax(jnp.any(counts, 0).astype(jnp.int32), axis_name).sum()  # valid for any example of any device
    wide = jnp.maximum(wide, 1).astype(student.dtype)

    def level(t: Any) -> PerExample:
      log_q, log_p = log_softmax(student / t, class_mask), log_softmax(teacher_at(t) / t, class_mask)
      q, p = (rows(jnp.where(used, jnp.exp(x), 0.0), context) for x in (log_q, log_p))
      between = jnp.sum((p.local @ p.all.T - q.local @ q.all.T) ** 2, -1)
      classes = jnp.sum((p.all.T @ p.all - q.all.T @ q.all) ** 2) / wide
      return instance * t**2 * kl(log_p, log_q) + batch_gram * between + class_gram * classes

    parts = [level(at(t, step)) for t in temperatures]
    return sum(parts[1:], parts[0])

  return loss(levels, "mlkd", reads=("class_mask", "valid", "axis_name", "step", "teacher_at"), relational=True)
