"""The initial kernels of convolutions."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

_MATRIX = jax.nn.initializers.lecun_normal()


def conv_kernel(key: Key[Array, ""], shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32) -> Array:
  """Returns a kernel (*window, inputs, outputs) with the numbers of `nn.Conv`'s own initializer.

  They are drawn as a matrix of the same fan-in: random bits of four axes take XLA five times as long to compile.
  """
  return _MATRIX(key, (math.prod(shape[:-1]), shape[-1]), dtype).reshape(shape)
