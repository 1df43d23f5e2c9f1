"""Diagonal Fisher information (Theis, Korshunova, Tejani, Huszár, "Faster gaze prediction with dense networks and
Fisher pruning", arXiv:1801.05787); optimal brain damage (LeCun, Denker, Solla, NIPS 1989) with it as the curvature.

    S = w^2 h / 2,   h = mean of g^2

Setting a weight to zero at a minimum of the loss changes it by w^2 / 2 times its second derivative, which is the mean
of g^2 over examples where the loss is a log-likelihood.

Where we differ: the mean is over steps and not over examples, so that g is the gradient of a batch, whose mean square
is smaller by about the batch's size, a factor that all weights share; steps have exponential weights.
"""

import jax
import jax.numpy as jnp

from leanax.core import ranges
from sparsity.criteria.base import Score, wide


def fisher(decay: float = 0.99) -> Score:
  """Keeps the entries of largest w^2 h / 2, where w is the weight as it is when a mask is made.

  Args:
    decay: of h <- decay h + (1 - decay) g^2 from h = 0.

  Raises:
    UserError: decay outside [0, 1).
  """
  ranges.check("fisher: decay", decay, ranges.BELOW_ONE)

  def update(memory: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
    del w
    return decay * memory + (1 - decay) * jnp.square(wide(g))

  return Score(
    lambda w, g, memory, *, step, key: 0.5 * jnp.square(wide(w)) * memory,
    init=lambda w: jnp.zeros_like(wide(w)),
    update=update,
  )
