"""Models for the tests of stages: layers that are one leaf, and batch norms at two places."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def scanned(width=8, layers=3):
  def init(key, x):
    kernels = jax.random.normal(key, (layers, width, width)) * jnp.asarray([1.0, 0.5, 0.1])[:layers, None, None]
    first, last = jax.random.normal(key, (x[0].size, width)), jax.random.normal(key, (width, 4))
    return {"params": {"first": {"kernel": 0.1 * first}, "blocks": {"kernel": kernels}, "last": {"kernel": last}}}

  def apply(variables, x):
    p = variables["params"]
    x = x.reshape(x.shape[0], -1) @ p["first"]["kernel"]
    x, _ = jax.lax.scan(lambda x, w: (x + jax.nn.relu(x @ w), None), x, p["blocks"]["kernel"])
    return x @ p["last"]["kernel"]

  return init, apply


class Normed(nn.Module):
  """A batch norm after a convolution, and one after a pool."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x)))
    x = nn.BatchNorm(use_running_average=not train)(nn.max_pool(x, (2, 2), (2, 2)))
    return nn.Dense(3)(x.mean((1, 2)))


class Dropped(nn.Module):
  """A batch norm that is folded, one after a pool that stays, without scale and bias, and dropout."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x)))
    x = nn.BatchNorm(use_running_average=not train, use_scale=False, use_bias=False)(nn.max_pool(x, (2, 2), (2, 2)))
    return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2))))


class Rows(nn.Module):
  """A batch norm with statistics per row of the image: on equal numbers it is folded, on those of training it stays."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.relu(nn.BatchNorm(use_running_average=not train, axis=(1, 3))(nn.Conv(4, (3, 3))(x)))
    return nn.Dense(4)(x.mean((1, 2)))


class Sorted(nn.Module):
  """A layer that no file format has, called through a function of jax."""

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(6)(x.reshape(x.shape[0], -1))
    return nn.Dense(4)(jnp.sort(x))


class Undefined(nn.Module):
  """A layer that starts, and stays, without numbers."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(4, bias_init=nn.initializers.constant(jnp.nan))(x.reshape(x.shape[0], -1))


class Forgets(nn.Module):
  """A layer that fails in training alone."""

  @nn.compact
  def __call__(self, x, train=False):
    return nn.Dense(4)({"y": x}["x" if train else "y"].reshape(x.shape[0], -1))
