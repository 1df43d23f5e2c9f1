"""LSQ, learned step size (Esser et al., arXiv:1902.08153): the paper's grid and its exact gradient.

    v̄ = round(clip(v/s, lower, upper)),   v̂ = s * v̄                                    (equations 1, 2)
    ∂v̂/∂s = round(v/s) - v/s  if lower < v/s < upper,  lower  if v/s <= lower,  upper  if v/s >= upper   (equation 3)
    ∂v̂/∂v = 1  if lower < v/s < upper,  else 0                                          (equation 5)

with lower = -Q_N and upper = Q_P. The masks are taken before rounding. The scale's gradient is multiplied by
g = 1/sqrt(N Q_P) (section 2.2), N the number of weights that share the scale, or of features (never times the batch).

Where we differ: lower and upper are any integers, so that an affine grid with the fixed zero point z is served by
lower = qmin - z, upper = qmax - z; scales may be one per channel. The backward pass sums equation 3 as
∂L/∂s = Σ c (v̂ - v inside, v̂ outside) / s for the cotangent c, with v̄ saved: it needs no second rounding, and the
difference is exact. What is trained is the logarithm of the scale. The paper starts at 2 mean|v| / sqrt(Q_P); above 4
bits, where that is several times wider than the data, we start from the observed range unless told otherwise.
"""

import jax
import jax.numpy as jnp

from quant.estimators.base import Estimator, Placed, Statistics, alike, scaled, sum_as
from quant.grid import steps


def lsq() -> Estimator:
  """The scale is trained with the gradient of LSQ."""
  return Estimator(_placed_steps, start_scale)


def initial_scale(mean_magnitude: jax.Array, upper: jax.Array | float) -> jax.Array:
  """Returns the start value 2 mean|v| / sqrt(Q_P) (section 2.1), of weights or of the first batch of activations."""
  return 2 * mean_magnitude / jnp.sqrt(jnp.asarray(upper, mean_magnitude.dtype))


def start_scale(statistics: Statistics, start: str) -> jax.Array:
  """Returns the observed range's scale, or the paper's: with "auto" the paper's up to 4 bits."""
  grid = statistics.grid
  if start == "range" or (start == "auto" and grid.bits > 4):
    return grid.scale
  upper = jnp.maximum(grid.qmax - grid.zero_point, 1).astype(jnp.float32)
  scale = initial_scale(statistics.magnitude, upper)
  return jnp.where(scale == 0, jnp.ones_like(scale), scale)


def gradient_scale(count: int, upper: jax.Array | float) -> jax.Array:
  """Returns the factor g = 1 / sqrt(N Q_P), for N = count."""
  return 1 / jnp.sqrt(count * jnp.asarray(upper, jnp.float32))


def _placed_steps(placed: Placed) -> jax.Array:
  factor = gradient_scale(placed.count, jnp.maximum(placed.upper, 1).astype(jnp.float32))
  return lsq_steps(placed.x, placed.scale, placed.lower, placed.upper, factor)


def lsq_steps(
  x: jax.Array,
  scale: jax.Array,
  lower: jax.Array | float,
  upper: jax.Array | float,
  gradient_scale: jax.Array | float = 1.0,
) -> jax.Array:
  """Returns `x` on the grid of `scale` in steps, whole floats in the wider type of both, with LSQ's gradients.

  A cotangent is taken for one of the values scale * steps: the caller multiplies by the scale.

  Args:
    x: weights or activations.
    scale: positive; () or of x's rank with 1 on the axes that share a scale.
    lower: integer-valued, the lowest code less the zero point; () or as the scale.
    upper: integer-valued, the highest code less the zero point.
    gradient_scale: the factor g on the scale's gradient.
  """
  return _steps(x, *alike(x, scale, lower, upper, gradient_scale))


def lsq_values(x: jax.Array, scale: jax.Array, *numbers: jax.Array | float) -> jax.Array:
  """Returns `lsq_steps` times the scale, in x's type: the paper's quantizer of an array; the same arguments."""
  return scaled(lsq_steps(x, scale, *numbers), scale, x.dtype)


@jax.custom_vjp
def _steps(x: jax.Array, scale: jax.Array, lower: jax.Array, upper: jax.Array, factor: jax.Array) -> jax.Array:
  return _forward(x, scale, lower, upper, factor)[0]


def _forward(x, scale, lower, upper, factor):
  rounded = jnp.round(jnp.clip(steps(x, scale), lower, upper))
  return rounded, (x, rounded, scale, lower, upper, factor)


def _backward(saved, cotangent):
  x, rounded, scale, lower, upper, factor = saved
  values, ratio, wide = scale * rounded, steps(x, scale), scale.dtype
  inside = (lower < ratio) & (ratio < upper)
  straight = jnp.where(inside, cotangent, jnp.zeros_like(cotangent))
  terms = cotangent.astype(wide) * (values.astype(wide) - jnp.where(inside, x.astype(wide), jnp.zeros_like(ratio)))
  return straight.astype(x.dtype), sum_as(terms, scale) / scale * factor, None, None, None


_steps.defvjp(_forward, _backward)
