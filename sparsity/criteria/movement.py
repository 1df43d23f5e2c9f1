"""Movement (Sanh, Wolf, Rush, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", arXiv:2005.07683, section 4).

    S = -sum over steps of w g

A weight that the gradient takes away from zero gains, one that moves towards zero loses; so scores have signs, and a
small weight that grows is kept before a large one that shrinks. The learning rate of the paper's scores is a factor,
which does not change their order.

Where we differ: a pruned weight is zero here, so that its score rests, while the paper's keeps its value, and its score
goes on; the scores of kept weights may fall below it, and it then comes back, from zero. The paper trains scores with
Adam; this is plain descent. Its soft form, a threshold of scores with a penalty, is no criterion.
"""

import jax
import jax.numpy as jnp

from sparsity.criteria.base import Score, wide


def movement() -> Score:
  """Keeps the entries that have moved farthest away from zero, by the sum of -w g."""

  def init(w: jax.Array) -> jax.Array:
    return jnp.zeros_like(wide(w))

  def update(memory: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
    return memory - wide(w) * wide(g)

  return Score(lambda w, g, memory, *, step, key: memory, init, update)
