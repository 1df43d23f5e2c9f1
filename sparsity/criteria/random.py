"""A random score: the baseline that a criterion has to beat. No paper."""

import jax
import jax.numpy as jnp

from sparsity.criteria.base import Score


def random() -> Score:
  """Keeps entries at random; in `sparsity.prune` what is pruned stays so, for each update draws the same scores."""
  return Score(lambda w, g, memory, *, step, key: jax.random.uniform(key, w.shape, jnp.float32), reads_gradient=False)
