"""Stochastic rounding (Gupta et al., arXiv:1502.02551, section 3.1): up or down at random, right in the mean.

    x̂ = s * (clip(⌊x/s + r⌋ + z) - z),   r uniform in [0, 1);   E[x̂] = x inside the grid

The gradient is straight through inside the grid, as of `ste`; the scale is not trained. Without a key, as in
evaluation, it rounds to the nearest. In a training step each device has its own key.
"""

import jax

from quant.estimators.base import Estimator, Placed
from quant.grid import compute_dtype, steps_to


def stochastic() -> Estimator:
  """Rounds up or down at random where there is a key."""
  return Estimator(_steps, random=True)


def _steps(placed: Placed) -> jax.Array:
  x = placed.x
  if placed.key is not None:
    dtype = compute_dtype(x, placed.scale)
    noise = 0.5 - jax.random.uniform(placed.key, x.shape, dtype)  # ⌊u + r⌋ is u + r - 1/2, rounded
    x = x.astype(dtype) + jax.lax.stop_gradient(placed.scale).astype(dtype) * noise
  return steps_to(placed.ends, x, placed.scale, placed.zero_point, placed.format)
