"""EWGS, element-wise gradient scaling (Lee, Kim, Ham, "Network Quantization with Element-wise Gradient Scaling",
arXiv:2104.00903).

    u = clip(x/s, lower, upper),   x̂ = s round(u),   e = (u - round(u)) / (upper - lower)
    ∂L/∂u = s g (1 + δ sign(g) e),   g = ∂L/∂x̂                                            (section 3)

A step of descent against a positive gradient lowers x: the gradient is larger where x lies above its level, which it
then leaves sooner, and smaller below. With δ = 0 it passes straight through. As in the paper the error e is that of
numbers scaled to [0, 1], and the clip keeps the gradient at its ends.

Where we differ: δ is a constant, while the paper also sets it anew from the trace of the Hessian. The paper trains both
ends of the interval; here the scale is trained, by the chain rule through u = x/s and x̂ = s round(u), and the zero
point stays as calibrated. Training starts at the observed range.
"""

import functools

import jax
import jax.numpy as jnp

from leanax.core import ranges
from quant.estimators.base import Estimator, Placed, Statistics, alike, sum_as
from quant.estimators.lsq import start_scale
from quant.grid import steps


def ewgs(delta: float = 1e-3) -> Estimator:
  """The gradient is scaled by where a number lies beside its level; the scale is trained.

  Args:
    delta: δ, 0 or more.
  """
  ranges.check("ewgs: delta", delta, ranges.NOT_NEGATIVE)
  return Estimator(functools.partial(_placed_steps, float(delta)), _start, straight=not delta)


def _start(statistics: Statistics, start: str) -> jax.Array:
  return start_scale(statistics, "range" if start == "auto" else start)


def _placed_steps(delta: float, placed: Placed) -> jax.Array:
  return _steps(delta, placed.x, *alike(placed.x, placed.scale, placed.lower, placed.upper))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _steps(delta: float, x: jax.Array, scale: jax.Array, lower: jax.Array, upper: jax.Array) -> jax.Array:
  return _forward(delta, x, scale, lower, upper)[0]


def _forward(delta, x, scale, lower, upper):
  del delta
  rounded = jnp.round(jnp.clip(steps(x, scale), lower, upper))
  return rounded, (x, rounded, scale, lower, upper)


def _backward(delta, saved, cotangent):
  x, rounded, scale, lower, upper = saved
  ratio, wide = steps(x, scale), cotangent.astype(scale.dtype)
  inside = (lower <= ratio) & (ratio <= upper)
  error = (ratio - rounded) / (upper - lower)
  by_x = jnp.where(inside, wide * (1 + delta * jnp.sign(wide) * error), jnp.zeros_like(wide))
  by_scale = wide * rounded - by_x * jnp.where(inside, ratio, jnp.zeros_like(ratio))
  return by_x.astype(x.dtype), sum_as(by_scale, scale), None, None


_steps.defvjp(_forward, _backward)
