"""What losses on logits share beside the arithmetic of `kd.base`: labels of mixed examples, and sums and mixtures of
probabilities that are kept as logarithms.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from kd.base import ClassMask, Logits, PerExample, labels_of


def by_label(f: Callable[[Array], PerExample], batch: Mapping[str, Any], loss: str) -> PerExample:
  """`f(labels)`, the numbers of a loss that knows the label; of a mixed example (mixup) those of its two labels,
  averaged with the weights of their images.

  Raises:
    UserError: the batch has no 'label'.
  """
  per_example = f(labels_of(batch, loss))
  if "mix" not in batch:
    return per_example
  weight = batch["mix"].astype(per_example.dtype)
  return weight * per_example + (1 - weight) * f(batch["mix_label"])


def is_label(labels: Int[Array, " batch"], logits: Logits) -> Bool[Array, "batch classes"]:
  """Which class of each row is the one that its label names."""
  return labels[:, None] == jnp.arange(logits.shape[-1], dtype=labels.dtype)


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
