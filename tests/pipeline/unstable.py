"""Models, data and losses whose numbers are not finite at one known place."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import kd


class Plain(nn.Module):
  """Two dense layers; `bad` names what is planted: a parameter, an activation, or the gradient of a leaf."""

  bad: str = ""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(6, name="first")(x.reshape(x.shape[0], -1)))
    if self.bad == "activation":
      x = x + jnp.sqrt(-1 - jnp.abs(x))
    bias = nn.initializers.constant(jnp.nan) if self.bad == "parameter" else nn.initializers.zeros
    x = nn.Dense(5, name="middle", bias_init=bias)(x)
    if self.bad == "gradient":  # 0, whose derivative is 0 times infinity
      x = x + jnp.sqrt(jnp.sum((0 * self.param("planted", nn.initializers.ones, (3,))) ** 2))
    return nn.Dense(4, name="last")(x)


class Table(nn.Module):
  """A table of four rows, for tokens."""

  @nn.compact
  def __call__(self, x):
    x = nn.Embed(4, 6)(x)
    return nn.Dense(4)(x.reshape(x.shape[0], -1))


def _data(inputs):
  rng = np.random.default_rng(0)
  made = {name: (inputs(rng, count), rng.integers(0, 4, count)) for name, count in SIZES.items()}
  return {**made, "classes": ("a", "b", "c", "d")}


SIZES = {"train": 64, "validation": 8, "test": 8}


def numbers(large=1.0):
  return _data(lambda rng, count: (large * rng.uniform(0.5, 1, (count, 7))).astype(np.float32))


def tokens(most=4):
  return _data(lambda rng, count: rng.integers(0, most, (count, 5)))


def undefined():
  """A loss that has no number."""

  def loss(student, teacher, label):
    return jnp.sum(jax.nn.softmax(student), -1) * jnp.nan

  return kd.loss(loss, "undefined", reads=("label",), needs_teacher=False)
