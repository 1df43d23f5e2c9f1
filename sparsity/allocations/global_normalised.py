"""One ranking over all layers, of scores over the Euclidean norm of their layer (as in jaxpruner, Lee et al.,
arXiv:2304.14082).

Without the norm a layer whose weights are small, such as a wide one, loses most of them.
"""

import jax
import jax.numpy as jnp

from sparsity.allocations.base import Normalised


def global_normalised(scores: jax.Array) -> Normalised:
  """Returns (layers, entries) scores, each layer of the norm 1; a layer of zeros stays as it is."""
  most = jnp.max(jnp.abs(scores), axis=1, keepdims=True)
  scaled = scores / jnp.where(most > 0, most, 1)  # squares of large numbers would be infinite
  norm = jnp.sqrt(jnp.sum(jnp.square(scaled), axis=1, keepdims=True))
  return Normalised(scaled / jnp.where(norm > 0, norm, 1))
