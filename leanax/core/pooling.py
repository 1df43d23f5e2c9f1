"""Average pooling of maps to any smaller size."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def pool_to(x: Float[Array, "batch height width channels"], size: tuple[int, int]) -> Array:
  """Returns averages, of output i over the inputs floor(i n / m) to ceil((i + 1) n / m)."""
  for place, length in ((1, size[0]), (2, size[1])):
    if x.shape[place] != length:
      x = jnp.moveaxis(
        jnp.tensordot(x, jnp.asarray(_bins(x.shape[place], length), x.dtype), ((place,), (0,))), -1, place
      )
  return x


def _bins(wide: int, narrow: int) -> np.ndarray:
  """Returns the weights of the means, (wide, narrow)."""
  out = np.zeros((wide, narrow))
  for i in range(narrow):
    begin, end = i * wide // narrow, -(-(i + 1) * wide // narrow)
    out[begin:end, i] = 1 / (end - begin)
  return out
