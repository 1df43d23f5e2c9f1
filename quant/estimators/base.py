"""The kind of method that decides how rounding is trained: the gradient that passes, and whether the scale moves.

A trained scale is stored as its logarithm, s = exp(t), whatever the estimator: it stays positive, and an Adam step
changes it by a share of itself, whatever its size. The gradient with respect to s is that of the estimator; t receives
s times it by the chain rule.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from leanax.core.errors import UserError
from quant.grid import Grid, compute_dtype, floats, laid_out


class Placed(NamedTuple):
  """A tensor and the grid that it is rounded to.

  Attributes:
    x: weights or activations, of any shape.
    scale: positive; () or of x's rank, with 1 on the axes that share a scale.
    zero_point: int32; () or as the scale.
    ends: the lowest and the highest code.
    count: the weights that share one scale, or the features of one example (never times the batch).
    format: the levels, a name in `quant.formats`.
    key: a random key, for estimators that round at random; None in evaluation.
  """

  x: jax.Array
  scale: jax.Array
  zero_point: jax.Array
  ends: tuple[int, int]
  count: int
  format: str = "integer"
  key: jax.Array | None = None

  @property
  def lower(self) -> jax.Array:
    """The lowest code less the zero point."""
    return self.ends[0] - self.zero_point

  @property
  def upper(self) -> jax.Array:
    """The highest code less the zero point."""
    return self.ends[1] - self.zero_point


class Statistics(NamedTuple):
  """Statistics of a tensor from calibration, from which training starts.

  Attributes:
    magnitude: the mean magnitude, () or one for each scale.
    grid: the grid of the observed range, whose scale is of the same shape.
  """

  magnitude: jax.Array
  grid: Grid


def as_it_is(scale: jax.Array) -> jax.Array:
  """Returns the trained scale unchanged: it is the grid's."""
  return scale


@dataclasses.dataclass(frozen=True)
class Estimator:
  """A rule by which a tensor is rounded to its grid in training.

  Called with (x, grid, count=None, key=None), it rounds an array: values in x's type and shape, with its gradients for
  x and the grid's scale, which is taken for the trained one. `count` and `key` are those of `Placed`; by default the
  count is that of the numbers that share a scale.

  Attributes:
    steps: placed -> the values in steps of the scale, in the wider type of x and the scale; of integers the codes less
      the zero point. A cotangent is taken for one of the values scale * steps: the caller multiplies by the scale.
    init: (statistics, start) -> the scale from which training starts, of the shape of the grid's; `start` is "auto",
      "lsq" or "range" (`quant.Spec`). None: the scale is not trained and stays that of the observed range.
    scale: from the trained scale to that of the grid: idempotent, monotone, elementwise.
    formats: the formats that it rounds to, names in `quant.formats`; None for all.
    random: it reads a key. Others are given none, and their programs hold no random numbers.
    straight: the gradient of x passes unchanged inside the range; otherwise it may be scaled there by positive factors,
      which are 1 for values on the grid.
  """

  steps: Callable[[Placed], jax.Array]
  init: Callable[[Statistics, str], jax.Array] | None = None
  scale: Callable[[jax.Array], jax.Array] = as_it_is
  formats: tuple[str, ...] | None = ("integer",)
  random: bool = False
  straight: bool = True

  @property
  def trains(self) -> bool:
    """Returns whether the scale is trained."""
    return self.init is not None

  def values(self, placed: Placed) -> jax.Array:
    """Returns the tensor on its grid, in its own type and shape."""
    return scaled(self.steps(placed), placed.scale, placed.x.dtype)

  def __call__(self, x: jax.Array, grid: Grid, count: int | None = None, key: jax.Array | None = None) -> jax.Array:
    if self.formats is not None and grid.format not in self.formats:
      raise UserError(f"an estimator of {' and '.join(self.formats)} grids was given one of {grid.format!r}")
    x = floats("values on a grid", x)
    laid, scale, zero_point = laid_out(x, dataclasses.replace(grid, scale=self.scale(grid.scale)))
    count = x.size // scale.size if count is None else count
    return self.values(Placed(laid, scale, zero_point, grid.ends, count, grid.format, key)).reshape(x.shape)


def scaled(steps: jax.Array, scale: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Returns the values scale * steps in `dtype`; the cotangent goes to the steps unchanged."""
  return _scaled(dtype, steps, scale.astype(steps.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scaled(dtype: jnp.dtype, steps: jax.Array, scale: jax.Array) -> jax.Array:
  return (scale * steps).astype(dtype)


def _scaled_forward(dtype, steps, scale):
  # The empty array tells the type that the cotangent is to have.
  return (scale * steps).astype(dtype), jnp.zeros((0,), steps.dtype)


def _scaled_backward(dtype, like, cotangent):
  del dtype
  return cotangent.astype(like.dtype), None


_scaled.defvjp(_scaled_forward, _scaled_backward)


def to_parameter(scale: jax.Array) -> jax.Array:
  """Returns the trained parameter of a positive scale: its logarithm."""
  return jnp.log(scale)


def to_scale(parameter: jax.Array) -> jax.Array:
  """Returns the positive scale of a trained parameter."""
  # Between barriers, or XLA turns x / exp(t) into x * exp(-t), and folds the exponential of a constant with another
  # rounding than it computes: the codes would differ from those of the scale handed out.
  return jax.lax.optimization_barrier(jnp.exp(jax.lax.optimization_barrier(parameter)))


def alike(x: jax.Array, scale: jax.Array, *numbers: jax.Array | float) -> tuple[jax.Array, ...]:
  """Returns the scale and the other numbers in the type in which x is rounded; the scale varies over devices as x."""
  dtype = compute_dtype(x, scale)
  others = (jnp.asarray(v).astype(dtype) for v in numbers)
  # Under shard_map a replicated scale meets sharded data: adding an empty sum of the data makes it vary as they do,
  # outside the custom rule, and the transpose of that step adds the scale's gradient over the devices. It compiles to
  # nothing.
  empty = jnp.sum(jax.lax.stop_gradient(x).reshape(-1)[:0])
  return scale.astype(dtype) + empty.astype(dtype), *others


def sum_as(terms: jax.Array, scale: jax.Array) -> jax.Array:
  """Returns the sum of a scale's gradient over what shares it."""
  if scale.ndim:
    return jnp.sum(terms, axis=tuple(i for i, n in enumerate(scale.shape) if n == 1), keepdims=True)
  if terms.ndim < 2:
    return jnp.sum(terms)
  # As a row of ones times a matrix: XLA's reduction to a scalar is many times slower on CPU.
  table = terms.reshape(-1, terms.shape[-1])
  ones = jnp.ones((1, table.shape[0]), table.dtype)
  return jnp.sum(jax.lax.dot(ones, table, precision=jax.lax.Precision.HIGHEST))
