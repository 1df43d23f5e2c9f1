"""Shared by losses on feature maps: resizing, norms that are safe at zero, small trained projectors.

Maps are (batch, height, width, channels); token sequences and vectors have fewer axes or none between batch and
channels.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kd.kinds import Context
from kd.reads import require_count
from leanax.core import axis
from leanax.core.errors import UserError
from leanax.core.pooling import pool_to


def flat_space(x: Array) -> Float[Array, "batch places channels"]:
  """Flattens the axes between batch and channels to one; a vector has one place."""
  return x.reshape(x.shape[0], -1, x.shape[-1])


def near_one(x: Array, axes: int | tuple[int, ...] | None = None) -> tuple[Array, Array]:
  """Scales an array so that its squares neither vanish nor overflow, by a power of two, which rounds nothing.

  Args:
    x: floats of any scale.
    axes: those whose largest magnitude shall be near 1; None for all.

  Returns:
    The scaled array and the factor, a constant that broadcasts to it; 1 where the array is 0 or not finite.
  """
  largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axes, keepdims=True))
  info = jnp.finfo(x.dtype)
  exponent = jnp.clip(jnp.frexp(largest)[1], info.minexp, -info.minexp)  # the factor and its reciprocal are normal
  exponent = jnp.where((largest > 0) & (largest < jnp.inf), exponent, 0)
  factor = jnp.ldexp(jnp.ones((), x.dtype), -exponent)
  return x * factor, factor


def unit(x: Array, axes: int | tuple[int, ...] = -1) -> Array:
  """Divides by the Euclidean norm along `axes`; 0 with gradient 0 where the norm is 0, NaN where it is not finite."""
  x, _ = near_one(x, axes)
  square = jnp.sum(x * x, axes, keepdims=True)
  dead = square == 0
  length = jnp.sqrt(jnp.where(dead, 1.0, square))
  return jnp.where(dead, 0.0, x / jnp.where(length < jnp.inf, length, jnp.nan))


def norm(x: Array, axes: int | tuple[int, ...] = -1) -> Array:
  """Returns the Euclidean norm along `axes`, with gradient 0 where it is 0."""
  x, factor = near_one(x, axes)
  square = jnp.sum(x * x, axes)
  dead = square == 0
  return jnp.where(dead, 0.0, jnp.sqrt(jnp.where(dead, 1.0, square)) / factor.reshape(square.shape))


def no_infinity(x: Array) -> Array:
  """Replaces infinities, which a ReLU, a margin or a softmax would make finite again, by NaN."""
  return jnp.where(jnp.isinf(x), jnp.nan, x)


def align(loss: str, student: Array, teacher: Array) -> tuple[Array, Array]:
  """Averages the larger of two maps down to the height and width of the smaller; other shapes must agree.

  Raises:
    UserError: only one is a map, or the numbers of tokens differ.
  """
  if student.ndim == teacher.ndim == 4:
    size = common_size(student, teacher)
    return pool_to(student, size), pool_to(teacher, size)
  if student.ndim != teacher.ndim or student.shape[1:-1] != teacher.shape[1:-1]:
    raise UserError(
      f"{loss}: a tap of shape {student.shape} of the student cannot be compared with one of {teacher.shape} of the "
      "teacher; expected two maps, or equally many tokens"
    )
  return student, teacher


def common_size(student: Any, teacher: Any) -> tuple[int, int]:
  """Returns the height and width at which two maps, or their shapes, are compared."""
  return min(student.shape[1], teacher.shape[1]), min(student.shape[2], teacher.shape[2])


def linear_init(key: Array, inputs: int, outputs: int, dtype: jax.typing.DTypeLike = jnp.float32) -> dict[str, Array]:
  """Initialises a linear map of the channels (a 1x1 convolution): {"kernel": (inputs, outputs), "bias"}, He et al."""
  kernel = jax.random.normal(key, (inputs, outputs), dtype) * jnp.asarray(np.sqrt(2.0 / inputs), dtype)
  return {"kernel": kernel, "bias": jnp.zeros((outputs,), dtype)}


def linear(aux: dict[str, Array], x: Array) -> Array:
  """Applies the map of `linear_init` to the last axis."""
  check_channels(aux["kernel"], x)
  return x @ aux["kernel"].astype(x.dtype) + aux["bias"].astype(x.dtype)


def compared(loss: str, student: Array, teacher: Array) -> None:
  """Refuses activations of two shapes, one of which could be broadcast to the other.

  Raises:
    UserError: names the loss and both shapes.
  """
  if student.shape != teacher.shape:
    raise UserError(
      f"{loss}: the student's activation has the shape {student.shape} and the teacher's {teacher.shape}; expected "
      "equal shapes, and the 'aux' that its init makes for these taps"
    )


def check_channels(kernel: Array, x: Array) -> None:
  """Refuses an activation whose channels do not fit a kernel (..., inputs, outputs).

  Raises:
    UserError: names both shapes.
  """
  if kernel.shape[-2] != x.shape[-1]:
    raise UserError(
      f"a layer of a loss reads {kernel.shape[-2]} channels and got an activation of shape {x.shape}; expected the "
      "'aux' that its init makes for these taps"
    )


def batch_normalise(x: Array, context: Context, epsilon: float = 1e-5) -> Array:
  """Normalises each channel to mean 0 and variance 1 over the valid examples of all devices; no running statistics."""
  mean, variance = moments(x, context)
  return (_zero_invalid(x, context)[0] - mean) * jax.lax.rsqrt(variance + epsilon)


def moments(x: Array, context: Context) -> tuple[Array, Array]:
  """Returns the mean and variance per channel, (channels,), over the valid examples of all devices; 0 without any."""
  axes = tuple(range(x.ndim - 1))
  values = x.size // x.shape[-1] * axis.size(context.axis_name)
  require_count(context.loss, "values of a channel in its batch normalisation", values)
  x, weight = _zero_invalid(x, context)
  total = jnp.maximum(axis.psum(jnp.sum(weight), context.axis_name), 1.0)
  mean = axis.psum(jnp.sum(weight * x, axes), context.axis_name) / total
  return mean, axis.psum(jnp.sum(weight * (x - mean) ** 2, axes), context.axis_name) / total


def some_count(context: Context) -> Array:
  """Returns whether any example of any device is valid: a term's mask may exclude a whole batch."""
  valid = context.batch.get("valid")
  if valid is None:
    return jnp.ones((), bool)
  return axis.psum(jnp.sum(valid.astype(jnp.int32)), context.axis_name) > 0


def _zero_invalid(x: Array, context: Context) -> tuple[Array, Array]:
  """Returns the array with 0 in invalid examples, and (batch, ..., 1) weights, 1 for valid and 0 for invalid ones."""
  valid = context.batch.get("valid")
  weight = jnp.ones(x.shape[:1], x.dtype) if valid is None else valid.astype(x.dtype)
  weight = jnp.broadcast_to(weight.reshape(-1, *(1,) * (x.ndim - 1)), (*x.shape[:-1], 1))
  return jnp.where(weight > 0, x, 0.0), weight
