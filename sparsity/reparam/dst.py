"""Dynamic sparse training with trainable thresholds, DST (Liu, Xu, Shi, Cheung, So, "Dynamic Sparse Training: Find
Efficient Sparse Network From Scratch With Trainable Masked Layers", arXiv:2005.06870, section 3).

    Q = |W| - t,   M = 1 where Q > 0, else 0,   the model is applied with W M;   penalty alpha sum of exp(-t)

t has a number for each output of a layer. In the gradient the derivative of the step M is the paper's long-tailed one:
2 - 4|Q| up to |Q| = 0.4, then 0.4 up to 1, then 0. So thresholds are trained, and pruned weights too, which may come
back with their values. The penalty lifts thresholds, which alone say how sparse the network becomes.

Thresholds have no upper limit: too large an alpha prunes a layer whole, and nothing resets it.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from leanax.core import ranges
from leanax.graph.kinds import Reparam
from sparsity.reparam.base import by_leaf
from sparsity.select import KERNELS, Chosen, Setting, Stacked


def dst(
  initial: float = 0.0,
  alpha: float = 0.0,
  *,
  rules: Sequence[tuple[str, Setting]] = KERNELS,
  stacked: Stacked = (),
) -> Reparam:
  """Returns the reparameterization; its aux is t by leaf name, of the leaf's rank with 1 on axes that share a number.

  A layer's outputs are its last axis, as in flax's Dense and Conv.

  Args:
    initial: t at the start; at 0 the network is dense.
    alpha: of the penalty alpha sum of exp(-t).
    rules: as of `sparsity.prune`; True: learn thresholds, a number: begin with this t.
    stacked: as of `sparsity.prune`; layers of a leaf have thresholds of their own.

  Raises:
    UserError: numbers that are none; at `init`, a rule that matches nothing.
  """
  ranges.check("dst: alpha", alpha, ranges.NOT_NEGATIVE)
  parts: Any = {"shape": _outputs, "weights": lambda w, t: _masked(w, t.astype(w.dtype)), "term": lambda t: jnp.exp(-t)}
  return by_leaf("dst", "thresholds", initial, rules, stacked, strength=alpha, **parts)


def _outputs(one: Chosen) -> tuple[int, ...]:
  """Returns the shape of the thresholds: a number for each output, of each layer of a stacked leaf."""
  outputs = max(axis for axis in range(one.leaf.ndim) if axis not in one.axes)
  return tuple(n if axis in (*one.axes, outputs) else 1 for axis, n in enumerate(one.leaf.shape))


@jax.custom_jvp
def _masked(w: jax.Array, threshold: jax.Array) -> jax.Array:
  # Not a product with the mask, which is -0 for a negative weight.
  return jnp.where(jnp.abs(w) <= threshold, jnp.zeros((), w.dtype), w)


@_masked.defjvp
def _masked_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
  (w, threshold), (of_w, of_threshold) = primals, tangents
  gap = jnp.abs(w) - threshold
  slope = jnp.where(jnp.abs(gap) <= 0.4, 2 - 4 * jnp.abs(gap), jnp.where(jnp.abs(gap) <= 1, 0.4, 0.0)).astype(w.dtype)
  kept = jnp.where(gap <= 0, jnp.zeros_like(of_w), of_w)
  return _masked(w, threshold), kept + w * slope * (jnp.sign(w) * of_w - of_threshold)
