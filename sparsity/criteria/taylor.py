"""First-order Taylor expansion of the loss (Molchanov et al., "Importance Estimation for Neural Network Pruning",
arXiv:1906.10771).

Setting a weight to zero changes the loss by about g w, so that equation 8 of the paper scores a parameter by
(g w)^2. Where we differ: the paper averages over the batches between two prunings, we over all steps, with exponential
weights.
"""

import jax
import jax.numpy as jnp

from leanax.core import ranges
from sparsity.criteria.base import Score


def taylor(decay: float = 0.0) -> Score:
  """Keeps the entries of largest (g w)^2.

  Args:
    decay: of the average over steps, m <- decay m + (1 - decay) (g w)^2 from m = 0; with 0 the gradient of the step in
      which a mask is made decides alone, and nothing is remembered.

  Raises:
    UserError: decay outside [0, 1).
  """
  ranges.check("taylor: decay", decay, ranges.BELOW_ONE)
  if not decay:
    return Score(lambda w, g, memory, *, step, key: _product(w, g), absolute=True)

  def update(memory: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
    return decay * memory + (1 - decay) * jnp.square(_product(w, g))

  return Score(
    lambda w, g, memory, *, step, key: memory,
    init=lambda w: jnp.zeros(w.shape, _wide(w)),
    update=update,
  )


def _wide(x: jax.Array) -> jnp.dtype:
  return jnp.dtype("float64" if x.dtype == jnp.float64 else "float32")


def _product(w: jax.Array, g: jax.Array) -> jax.Array:
  return w.astype(_wide(w)) * g.astype(_wide(w))
