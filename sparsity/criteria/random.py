"""A random score: the baseline that a criterion has to beat. No paper."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sparsity.criteria.base import Score


def random() -> Score:
  """Keeps entries at random; in `sparsity.prune` what is pruned stays so, for each update draws the same scores."""

  def of(w: Array, g: Array, memory: Any, *, step: Array, key: Array) -> Array:
    # Drawn flat: the bits are the same, and those of four axes take XLA five times as long to compile.
    return jax.random.uniform(key, (w.size,), jnp.float32).reshape(w.shape)

  return Score(of, reads_gradient=False)
