"""Layer-adaptive magnitude pruning, LAMP (Lee, Park, Mo, Ahn, Shin, "Layer-adaptive sparsity for the Magnitude-based
Pruning", arXiv:2010.07611, equation 5).

    score(u) = w_u^2 / sum of w_v^2 over all v from u on,   in a layer whose weights rise in magnitude

All layers are ranked as one by these scores. Within a layer their order is that of the magnitudes, so that LAMP shares
out a density and no more; the largest weight of a layer has the score 1, so that each layer keeps one at least where
the density leaves one for each. Of equal weights the earlier entry counts as the larger one.

Where we differ: any criterion's scores may take the place of |w|. Scores below zero stay below, divided by the
largest magnitude of their layer.
"""

import jax
import jax.numpy as jnp

from sparsity.allocations.base import Normalised


def lamp(scores: jax.Array) -> Normalised:
  """Returns (layers, entries) LAMP scores, 1 for the largest of each layer; a layer of zeros stays as it is."""
  most = jnp.max(jnp.abs(scores), axis=1, keepdims=True)
  scaled = scores / jnp.where(most > 0, most, 1)
  order = jnp.argsort(-scaled, axis=1, stable=True)
  falling = jnp.take_along_axis(scaled, order, axis=1)
  squares = jnp.square(jnp.maximum(falling, 0))
  total = jnp.cumsum(squares, axis=1)
  shares = jnp.where(falling > 0, squares / jnp.where(total > 0, total, 1), falling)
  return Normalised(jnp.take_along_axis(shares, jnp.argsort(order, axis=1), axis=1))
