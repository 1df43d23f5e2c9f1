"""Numbers drawn by numpy: random bits for one kernel of a convolution take longer to compile than many a test."""

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core.trees import map_named


def array(numbers, dtype=None):
  """`jnp.asarray`, without the program that it compiles for each shape of an array of numpy."""
  return jnp.asarray(numbers, dtype) if isinstance(numbers, jax.Array) else jax.device_put(np.asarray(numbers, dtype))


def normal(seed, shape):
  """Standard normal numbers in float32."""
  return array(np.random.default_rng(seed).normal(size=shape), np.float32)


def initial(module, *inputs, seed=0):
  """Variables of a linen module before training: kernels of variance 1 / fan-in, scales and variances 1, the rest 0."""
  rng = np.random.default_rng(seed)

  def leaf(name, like):
    if like.ndim > 1:
      numbers = rng.normal(size=like.shape).clip(-2, 2) / np.sqrt(np.prod(like.shape[:-1]))
    else:
      numbers = np.full(like.shape, float(name.endswith(("scale", "var"))))
    return array(numbers, like.dtype)

  return map_named(leaf, jax.eval_shape(module.init, jax.random.key(0), *inputs))
