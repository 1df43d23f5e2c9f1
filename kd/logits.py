"""Shared by losses on logits, beside `kd.base`: labels of mixed examples, and sums and mixtures of probabilities that
are kept as logarithms.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kd.base import ClassMask, Logits, PerExample
from kd.labels import Labels


def by_label(f: Callable[[Array], PerExample], labels: Labels) -> PerExample:
  """Returns `f(index)`, the loss per row given its label; for mixed examples (mixup) the average over both labels,
  weighted by `labels.mix`.
  """
  per_row = f(labels.index)
  if labels.mix is None or labels.mix_index is None:
    return per_row
  weight = labels.mix.astype(per_row.dtype)
  return weight * per_row + (1 - weight) * f(labels.mix_index)


def is_label(index: Int[Array, " rows"], logits: Logits) -> Bool[Array, "rows classes"]:
  """Returns the one-hot bools of the rows' labels."""
  return index[:, None] == jnp.arange(logits.shape[-1], dtype=index.dtype)


def not_excluded(
  student: Logits, teacher: Logits | None = None, class_mask: ClassMask | None = None
) -> Bool[Array, "rows classes"]:
  """Returns the valid classes to which at least one network gives a logit above -inf."""
  some = student != -jnp.inf
  some = some if teacher is None else some | (teacher != -jnp.inf)
  return some if class_mask is None else some & class_mask


def gap(student: Logits, teacher: Logits, class_mask: ClassMask | None = None) -> Logits:
  """Returns student - teacher, with 0 for masked classes and for classes that both exclude by -inf."""
  used = not_excluded(student, teacher, class_mask)
  return jnp.where(used, student, 0.0) - jnp.where(used, teacher, 0.0)


def log_sum(log_p: Logits, used: ClassMask) -> PerExample:
  """Returns log(sum of p over the classes `used`); where the sum is 0, finite and very low, with gradient 0."""
  low = jnp.finfo(log_p.dtype).min / 2
  return jax.nn.logsumexp(jnp.where(used & (log_p > low), log_p, low), axis=-1)


def log_mixture(log_p: Logits, log_q: Logits, share: float, class_mask: ClassMask | None = None) -> Logits:
  """Returns log(share p + (1 - share) q), 0 < share < 1; masked classes get 0, as in `log_softmax`."""
  some = (log_p > -jnp.inf) | (log_q > -jnp.inf)  # the gradient of logaddexp is NaN at two of -inf
  p, q = jnp.where(some, log_p, 0.0), jnp.where(some, log_q, 0.0)
  out = jnp.where(some, jnp.logaddexp(p + math.log(share), q + math.log1p(-share)), -jnp.inf)
  return out if class_mask is None else jnp.where(class_mask, out, 0.0)


def log_bernoulli(logits: Logits, class_mask: ClassMask | None = None) -> Float[Array, "rows outputs 2"]:
  """Returns the logarithms of an output's probabilities of 1, the sigmoid of its logit, and of 0.

  A masked output gets 0 and 0, which adds nothing to a divergence; a logit of -inf has probability 0. A logit of +inf
  or NaN gives NaN.
  """
  never = logits == -jnp.inf
  counts = jnp.ones((), bool) if class_mask is None else class_mask
  x = jnp.where(never | ~counts, 0.0, jnp.where(logits == jnp.inf, jnp.nan, logits))
  on, off = jnp.where(never, -jnp.inf, jax.nn.log_sigmoid(x)), jnp.where(never, 0.0, jax.nn.log_sigmoid(-x))
  return jnp.where(counts[..., None], jnp.stack([on, off], axis=-1), 0.0)
