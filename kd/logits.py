"""What losses on logits share beside the arithmetic of `kd.base`: labels of mixed examples, and sums and mixtures of
probabilities that are kept as logarithms.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kd.base import ClassMask, Logits, PerExample
from kd.labels import Labels


def by_label(f: Callable[[Array], PerExample], labels: Labels) -> PerExample:
  """`f(index)`, the numbers of a loss that knows the label; of a mixed example (mixup) those of its two labels,
  averaged with the weights of their images.
  """
  per_row = f(labels.index)
  if labels.mix is None or labels.mix_index is None:
    return per_row
  weight = labels.mix.astype(per_row.dtype)
  return weight * per_row + (1 - weight) * f(labels.mix_index)


def is_label(index: Int[Array, " rows"], logits: Logits) -> Bool[Array, "rows classes"]:
  """Which class of each row is the one that its index names."""
  return index[:, None] == jnp.arange(logits.shape[-1], dtype=index.dtype)


def not_excluded(
  student: Logits, teacher: Logits | None = None, class_mask: ClassMask | None = None
) -> Bool[Array, "rows classes"]:
  """The classes that count and that not every network excludes by a logit of -inf."""
  some = student != -jnp.inf
  some = some if teacher is None else some | (teacher != -jnp.inf)
  return some if class_mask is None else some & class_mask


def gap(student: Logits, teacher: Logits, class_mask: ClassMask | None = None) -> Logits:
  """Student - teacher, and 0 of a class that does not count or that both exclude by -inf."""
  there = not_excluded(student, teacher, class_mask)
  return jnp.where(there, student, 0.0) - jnp.where(there, teacher, 0.0)


def log_sum(log_p: Logits, used: ClassMask) -> PerExample:
  """Log of the sum of p over the classes `used`; very low, but not -inf, where that is 0: its gradient is then 0."""
  low = jnp.finfo(log_p.dtype).min / 2
  return jax.nn.logsumexp(jnp.where(used & (log_p > low), log_p, low), axis=-1)


def log_mixture(log_p: Logits, log_q: Logits, share: float, class_mask: ClassMask | None = None) -> Logits:
  """Logarithm of share p + (1 - share) q, 0 < share < 1; classes that do not count get 0, as in `log_softmax`."""
  some = (log_p > -jnp.inf) | (log_q > -jnp.inf)  # the gradient of logaddexp is NaN at two of -inf
  p, q = jnp.where(some, log_p, 0.0), jnp.where(some, log_q, 0.0)
  out = jnp.where(some, jnp.logaddexp(p + math.log(share), q + math.log1p(-share)), -jnp.inf)
  return out if class_mask is None else jnp.where(class_mask, out, 0.0)


def log_bernoulli(logits: Logits, class_mask: ClassMask | None = None) -> Float[Array, "rows outputs 2"]:
  """Logarithms of the probabilities that an output is on, the sigmoid of its logit, and off.

  An output that does not count gets 0 and 0, and so adds nothing to a divergence; a logit of -inf is never on. One of
  +inf, or NaN, is NaN: no network says that of itself.
  """
  never = logits == -jnp.inf
  counts = jnp.ones((), bool) if class_mask is None else class_mask
  x = jnp.where(never | ~counts, 0.0, jnp.where(logits == jnp.inf, jnp.nan, logits))
  on, off = jnp.where(never, -jnp.inf, jax.nn.log_sigmoid(x)), jnp.where(never, 0.0, jax.nn.log_sigmoid(-x))
  return jnp.where(counts[..., None], jnp.stack([on, off], axis=-1), 0.0)
