"""First-order Taylor expansion of the loss (Molchanov et al., "Importance Estimation for Neural Network Pruning",
arXiv:1906.10771).

Setting a weight to zero changes the loss by about g w, so that equation 8 of the paper scores a parameter by
(g w)^2; without an average that is the order of the saliency |g w|. Where we differ: the paper averages over the
batches between two prunings, we over all steps, with exponential weights.
"""

import jax
import jax.numpy as jnp

from leanax.core import ranges
from sparsity.criteria.base import Score, wide


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
    return Score(lambda w, g, memory, *, step, key: wide(w) * wide(g), absolute=True)

  def update(memory: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
    return decay * memory + (1 - decay) * jnp.square(wide(w) * wide(g))

  return Score(
    lambda w, g, memory, *, step, key: memory,
    init=lambda w: jnp.zeros_like(wide(w)),
    update=update,
  )
