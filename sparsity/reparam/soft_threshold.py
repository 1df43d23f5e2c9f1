"""Soft threshold reparameterization, STR (Kusupati et al., "Soft Threshold Weight Reparameterization for Learnable
Sparsity", arXiv:2002.03231).

The model is applied with sign(W) max(|W| - g(s), 0), where g is the sigmoid and s a number that each layer learns
(equation 4 of the paper). Weight decay of s, which starts far below 0, lifts it, and with it the threshold: it alone
says how sparse the network becomes.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from leanax.core import ranges
from leanax.graph.kinds import Reparam
from sparsity.reparam.base import by_leaf
from sparsity.select import KERNELS, Chosen, Setting, Stacked


def soft_threshold(
  initial: float = -10.0,
  decay: float = 0.0,
  *,
  rules: Sequence[tuple[str, Setting]] = KERNELS,
  stacked: Stacked = (),
) -> Reparam:
  """Returns the reparameterization; its aux is s by leaf name, scalars, or one for each layer of a stacked leaf.

  Args:
    initial: s at the start; thresholds are sigmoid(s), 4.5e-5 at -10.
    decay: lambda of the penalty lambda / 2 * sum of s^2, the weight decay of s; 0 where the optimizer decays it.
    rules: as of `sparsity.prune`; True: learn a threshold, a number: begin with this s.
    stacked: as of `sparsity.prune`.

  Raises:
    UserError: values that are not numbers; at `init`, a rule that matches nothing.
  """
  ranges.check("soft_threshold: decay", decay, ranges.NOT_NEGATIVE)
  parts: Any = {"shape": _layers, "weights": lambda w, s: _shrunk(w, jax.nn.sigmoid(s)), "term": jnp.square}
  return by_leaf("soft_threshold", "threshold", initial, rules, stacked, strength=0.5 * decay, **parts)


def _layers(one: Chosen) -> tuple[int, ...]:
  """Returns the shape of the thresholds: one number, or one for each layer of a stacked leaf."""
  return tuple(n if axis in one.axes else 1 for axis, n in enumerate(one.leaf.shape)) if one.axes else ()


def _shrunk(w: jax.Array, threshold: jax.Array) -> jax.Array:
  threshold = threshold.astype(w.dtype)
  zero = jnp.zeros((), w.dtype)  # not sign(w) * 0, which is -0 for a negative weight
  return jnp.where(jnp.abs(w) <= threshold, zero, w - jnp.sign(w) * threshold)  # NaN stays
