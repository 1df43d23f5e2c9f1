"""Optimizers and schedules as a user writes them, right and wrong."""

import jax
import jax.numpy as jnp
import optax


def signs(learning_rate, strength: float = 1.0, weight_decay: float = 0.0):
  """Steps of one size: u = -rate(t) (strength sign(g) + weight_decay p)."""

  def init(params):
    del params
    return jnp.zeros((), jnp.int32)

  def update(grads, count, params=None):
    def move(g, p):
      return -learning_rate(count) * (strength * jnp.sign(g) + weight_decay * p)

    return jax.tree.map(move, grads, params), count + 1

  return optax.GradientTransformation(init, update)


def falling(learning_rate, steps, power: float = 2.0):
  """rate(t) = learning_rate (1 - t / steps) ** power."""
  return lambda step: learning_rate * (1 - step / steps) ** power


def nothing():
  return optax.sgd(1.0)


def text(learning_rate):
  return "sgd"


def breaks(learning_rate):
  return {}["missing"]


def other_shapes(learning_rate):
  return optax.GradientTransformation(lambda p: (), lambda g, s, p=None: (jax.tree.map(jnp.sum, g), s))


def vector(learning_rate, steps):
  return lambda step: jnp.ones(3)


def number(learning_rate, steps):
  return 0.1


NO_FUNCTION = 3
