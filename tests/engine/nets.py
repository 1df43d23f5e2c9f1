"""Tiny models and batches that the tests of the engine share."""

import jax
import jax.numpy as jnp
import numpy as np

import kd
from leanax.core import axis
from leanax.engine.train import forward
from tests.numbers import array

CLASSES, FEATURES = 3, 4


def variables(seed=0, hidden=8):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: array(rng.normal(size=shape) * 0.5, jnp.float32)
  return {
    "params": {
      "first": {"kernel": draw(FEATURES, hidden), "bias": draw(hidden)},
      "last": {"kernel": draw(hidden, CLASSES), "bias": draw(CLASSES)},
    },
    "batch_stats": {"norm": {"mean": jnp.zeros(hidden), "var": jnp.ones(hidden)}},
  }


def mlp(variables, x, *, train, key, axis_name=None):
  """Two layers with a batch norm between; its statistics are those of all devices, if the axis is given."""
  p, stats = variables["params"], variables["batch_stats"]["norm"]
  h = x @ p["first"]["kernel"] + p["first"]["bias"]
  mean, var = stats["mean"], stats["var"]
  if train:
    with jax.named_scope("norm"):
      mean, square = axis.pmean((h.mean(0), (h**2).mean(0)), axis_name)
    var = square - mean**2
    stats = {"mean": 0.9 * stats["mean"] + 0.1 * mean, "var": 0.9 * stats["var"] + 0.1 * var}
  h = jax.nn.relu((h - mean) * jax.lax.rsqrt(var + 1e-5))
  return h @ p["last"]["kernel"] + p["last"]["bias"], {"batch_stats": {"norm": stats}}


def student(variables, qparams, quant_state, x, *, train, key, axis_name):
  logits, model_state = mlp(variables, x, train=train, key=key, axis_name=axis_name)
  return logits, model_state, quant_state


def teacher(variables, x):
  return mlp(variables, x, train=False, key=None)[0]


def without_norm(variables, x, *, train=False, key=None):
  p = variables["params"]
  return jax.nn.relu(x @ p["first"]["kernel"] + p["first"]["bias"]) @ p["last"]["kernel"] + p["last"]["bias"], {}


smooth = forward.plain(without_norm)


def distillation():
  return kd.weighted([kd.Term("hard", kd.hard_labels(), 0.3), kd.Term("soft", kd.hinton(2.0), 0.7)])


def supervised():
  return kd.weighted([kd.Term("hard", kd.hard_labels())])


def batch(size=8, seed=0):
  rng = np.random.default_rng(seed)
  x = array(rng.normal(size=(size, FEATURES)), jnp.float32)
  return {
    "image": x,
    "label": array(rng.integers(0, CLASSES, size), jnp.int32),
    "id": array(np.arange(size), jnp.int32),
  }


def largest_gap(a, b):
  """The largest absolute difference of two trees."""
  gaps = jax.tree.map(lambda x, y: float(np.max(np.abs(np.asarray(x) - np.asarray(y)))) if x.size else 0.0, a, b)
  return max(jax.tree.leaves(gaps), default=0.0)
