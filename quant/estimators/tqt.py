"""TQT, trained quantization thresholds (Jain et al., arXiv:1903.08066): scales that are powers of two.

    s = 2^⌈log2 t⌉ / 2^(b-1),   q(x; s) = s clip(round(x/s), n, p)                       (equations 4, 5)
    ∂q/∂log2 t = s ln 2 (round(x/s) - x/s  if n <= round(x/s) <= p,  n  below,  p  above)  (equation 8)
    ∂q/∂x = 1  if n <= round(x/s) <= p,  else 0                                          (equation 6)

The masks are taken after rounding, and the gradient passes straight through the ceiling. No factor scales it.

Where we differ: n and p are less the zero point of an affine grid, and the scale is that of the grid's own steps, so
that 2^(b-1) is the power of two above the highest code. What is trained is the natural logarithm of t / 2^(b-1):
its gradient is that of equation 8 without ln 2, and an Adam step moves log2 t by 1 / ln 2 of the rate. Thresholds
start at the observed range; the paper's start at three standard deviations or at the least divergence.
"""

import jax
import jax.numpy as jnp

from quant.estimators.base import Estimator, Placed, Statistics, alike, sum_as
from quant.estimators.lsq import start_scale
from quant.grid import steps


def tqt() -> Estimator:
  """The scale is the power of two above a trained threshold."""
  return Estimator(_placed_steps, _start, power_of_two)


def _start(statistics: Statistics, start: str) -> jax.Array:
  return start_scale(statistics, "range" if start == "auto" else start)


@jax.custom_jvp
def power_of_two(scale: jax.Array) -> jax.Array:
  """Returns the least power of two that is not below the scale; the gradient passes in the logarithm of both.

  One that exceeds a power of two by less than 2^-16 of itself is taken for it: a logarithm rounds it so.
  """
  fraction, exponent = jnp.frexp(scale * (1 - 2.0**-16))
  found = jnp.ldexp(jnp.ones_like(scale), jnp.where(fraction == 0.5, exponent - 1, exponent))
  return jnp.where(jnp.isfinite(scale), found, scale)


@power_of_two.defjvp
def _power_of_two_jvp(primals, tangents):
  (scale,), (tangent,) = primals, tangents
  found = power_of_two(scale)
  return found, tangent * (found / scale)


def _placed_steps(placed: Placed) -> jax.Array:
  return _steps(placed.x, *alike(placed.x, placed.scale, placed.zero_point, *placed.ends))


@jax.custom_vjp
def _steps(x: jax.Array, scale: jax.Array, zero_point: jax.Array, lowest: jax.Array, highest: jax.Array) -> jax.Array:
  return _forward(x, scale, zero_point, lowest, highest)[0]


def _forward(x, scale, zero_point, lowest, highest):
  rounded = jnp.clip(jnp.round(steps(x, scale)), lowest - zero_point, highest - zero_point)
  return rounded, (x, rounded, scale)


def _backward(saved, cotangent):
  x, rounded, scale = saved
  ratio = steps(x, scale)
  inside = jnp.round(ratio) == rounded
  straight = jnp.where(inside, cotangent, jnp.zeros_like(cotangent))
  terms = cotangent.astype(scale.dtype) * (rounded - jnp.where(inside, ratio, jnp.zeros_like(ratio)))
  return straight.astype(x.dtype), sum_as(terms, scale), None, None, None


_steps.defvjp(_forward, _backward)
