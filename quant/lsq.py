"""LSQ, learned step size (Esser et al., arXiv:1902.08153): the paper's grid and its exact gradient.

    v̄ = round(clip(v/s, lower, upper)),   v̂ = s * v̄                                    (equations 1, 2)
    ∂v̂/∂s = round(v/s) - v/s  if lower < v/s < upper,  lower  if v/s <= lower,  upper  if v/s >= upper   (equation 3)
    ∂v̂/∂v = 1  if lower < v/s < upper,  else 0                                          (equation 5)

with lower = -Q_N and upper = Q_P. The masks are taken before rounding. The scale's gradient is multiplied by
g = 1/sqrt(N Q_P) (section 2.2), N the number of weights that share the scale, or of features (never times the batch).

Where we differ: lower and upper are any integers, so that an affine grid with the fixed zero point z is served by
lower = qmin - z, upper = qmax - z; scales may be one a channel. The backward pass sums equation 3 as
∂L/∂s = Σ c (v̂ - v inside, v̂ outside) / s for the cotangent c, with v̂ saved: it needs no second rounding, and the
difference is exact.

A trained scale is stored as its logarithm, s = exp(t): it stays positive, and an Adam step changes it by a share of
itself, whatever its size. The gradient with respect to s is the paper's; t receives s times it by the chain rule.
"""

import jax
import jax.numpy as jnp

from quant.grid import compute_dtype, steps


def to_parameter(scale: jax.Array) -> jax.Array:
  """What is trained for a positive scale: its logarithm."""
  return jnp.log(scale)


def to_scale(parameter: jax.Array) -> jax.Array:
  """The positive scale of a trained parameter."""
  # Between barriers, or XLA turns x / exp(t) into x * exp(-t), and folds the exponential of a constant with another
  # rounding than it computes: the codes would differ from those of the scale handed out.
  return jax.lax.optimization_barrier(jnp.exp(jax.lax.optimization_barrier(parameter)))


def initial_scale(mean_magnitude: jax.Array, upper: jax.Array | float) -> jax.Array:
  """The start value 2 mean|v| / sqrt(Q_P) (section 2.1), of the weights or of the first batch of activations."""
  return 2 * mean_magnitude / jnp.sqrt(jnp.asarray(upper, mean_magnitude.dtype))


def gradient_scale(count: int, upper: jax.Array | float) -> jax.Array:
  """The factor g = 1 / sqrt(N Q_P), for N = count."""
  return 1 / jnp.sqrt(count * jnp.asarray(upper, jnp.float32))


def lsq(
  x: jax.Array,
  scale: jax.Array,
  lower: jax.Array | float,
  upper: jax.Array | float,
  gradient_scale: jax.Array | float = 1.0,
) -> jax.Array:
  """`x` on the grid of `scale`, with LSQ's gradients for both; in x's type and shape.

  Args:
    x: weights or activations.
    scale: positive; () or of x's rank with 1 on the axes that share a scale.
    lower: integer-valued, the lowest code less the zero point; () or as the scale.
    upper: integer-valued, the highest code less the zero point.
    gradient_scale: the factor g on the scale's gradient.
  """
  return _lsq(x, *_alike(x, scale, lower, upper, gradient_scale))


def lsq_steps(
  x: jax.Array,
  scale: jax.Array,
  lower: jax.Array | float,
  upper: jax.Array | float,
  gradient_scale: jax.Array | float = 1.0,
) -> jax.Array:
  """`lsq(...)` in steps, not multiplied by the scale: whole floats in the wider type of x and the scale.

  A cotangent is taken for one of the values that `lsq` returns: the caller multiplies by the scale.
  """
  return _lsq_steps(x, *_alike(x, scale, lower, upper, gradient_scale))


def _alike(x: jax.Array, scale: jax.Array, *numbers: jax.Array | float) -> tuple[jax.Array, ...]:
  """The scale and the other numbers in the type in which x is rounded."""
  dtype = compute_dtype(x, scale)
  others = (jnp.asarray(v).astype(dtype) for v in numbers)
  # Under shard_map a replicated scale meets sharded data: adding an empty sum of the data makes it vary as they do,
  # outside the custom rule, and the transpose of that step adds the scale's gradient over the devices. It compiles to
  # nothing.
  empty = jnp.sum(jax.lax.stop_gradient(x).reshape(-1)[:0])
  return scale.astype(dtype) + empty.astype(dtype), *others


@jax.custom_vjp
def _lsq(x: jax.Array, scale: jax.Array, lower: jax.Array, upper: jax.Array, factor: jax.Array) -> jax.Array:
  return _forward(x, scale, lower, upper, factor)[0]


@jax.custom_vjp
def _lsq_steps(x: jax.Array, scale: jax.Array, lower: jax.Array, upper: jax.Array, factor: jax.Array) -> jax.Array:
  return _steps_forward(x, scale, lower, upper, factor)[0]


def _steps_forward(x, scale, lower, upper, factor):
  rounded = jnp.round(jnp.clip(steps(x, scale), lower, upper))
  return rounded, (x, rounded, scale, lower, upper, factor)


def _steps_backward(saved, cotangent):
  x, rounded, scale, *others = saved
  straight, *more = _backward((x, scale * rounded, scale, *others), cotangent)
  return straight.astype(x.dtype), *more


def _forward(x, scale, lower, upper, factor):
  values = (scale * _steps_forward(x, scale, lower, upper, factor)[0]).astype(x.dtype)
  return values, (x, values, scale, lower, upper, factor)


def _backward(saved, cotangent):
  x, values, scale, lower, upper, factor = saved
  ratio = steps(x, scale)
  inside = (lower < ratio) & (ratio < upper)
  straight = jnp.where(inside, cotangent, jnp.zeros_like(cotangent))
  wide = scale.dtype
  terms = cotangent.astype(wide) * (values.astype(wide) - jnp.where(inside, x.astype(wide), jnp.zeros_like(ratio)))
  total = _sum_all(terms) if scale.ndim == 0 else _sum_to(terms, scale.shape)
  return straight, total / scale * factor, None, None, None


def _sum_to(terms: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  return jnp.sum(terms, axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


def _sum_all(terms: jax.Array) -> jax.Array:
  """The sum of activations as a row of ones times a matrix: XLA's reduction to a scalar is many times slower on CPU."""
  if terms.ndim < 2:
    return jnp.sum(terms)
  table = terms.reshape(-1, terms.shape[-1])
  ones = jnp.ones((1, table.shape[0]), table.dtype)
  return jnp.sum(jax.lax.dot(ones, table, precision=jax.lax.Precision.HIGHEST))


_lsq.defvjp(_forward, _backward)
_lsq_steps.defvjp(_steps_forward, _steps_backward)
