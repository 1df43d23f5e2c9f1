"""Small models of each framework, as `fn(variables, *inputs)` with their variables and an input."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from leanax import graph
from leanax.core.trees import map_named
from tests.numbers import array


class Case(NamedTuple):
  fn: Any
  train: Any
  variables: Any
  x: jax.Array


class MLP(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(8)(x.reshape(x.shape[0], -1)))
    return nn.Dense(3)(x)


class ConvNet(nn.Module):
  """Batch norm, a residual, grouped convolution, pools, dropout."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Conv(4, (3, 3), use_bias=False)(x)
    x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
    y = nn.Conv(4, (3, 3), feature_group_count=2)(x)
    x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(y) + x)
    x = nn.max_pool(x, (2, 2), (2, 2))
    x = nn.avg_pool(x, (2, 2), (2, 2)).mean((1, 2))
    x = nn.Dropout(0.5, deterministic=not train)(x)
    return nn.Dense(3)(x)


class NnxConvNet(nnx.Module):
  def __init__(self, rngs):
    self.conv = nnx.Conv(3, 4, (3, 3), use_bias=False, rngs=rngs)
    self.norm = nnx.BatchNorm(4, rngs=rngs)
    self.block = nnx.Conv(4, 4, (3, 3), rngs=rngs)
    self.head = nnx.Linear(4, 3, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.conv(x)))
    x = nnx.relu(self.block(x) + x)
    return self.head(x.mean((1, 2)))


# Numbers are drawn by numpy: the initialisers' random bits take longer to compile than all else in these tests.


def normal(seed, *shape):
  return array(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def fill(shapes):
  """Numbers for every leaf, scales and variances around one, so that no batch norm is the identity."""
  rng = np.random.default_rng(0)

  def leaf(name, like):
    near = 1.0 if name.endswith(("scale", "var")) else 0.0
    return array(near + 0.3 * rng.uniform(-1.0, 1.0, like.shape), like.dtype)

  return map_named(leaf, shapes)


def made(model, x):
  """Variables of a linen module."""
  return fill(jax.eval_shape(model.init, jax.random.key(0), x))


def images(batch=2):
  return normal(1, batch, 8, 8, 3)


@functools.cache
def mlp() -> Case:
  model, x = MLP(), images()
  return Case(model.apply, model.apply, made(model, x), x)


@functools.cache
def conv_net() -> Case:
  model, x = ConvNet(), images()

  def train(variables, x):
    return model.apply(variables, x, True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(3)})

  # nn.avg_pool divides by an int, which strict promotion forbids.
  relaxed = jax.numpy_dtype_promotion("standard")
  with relaxed:
    variables = made(model, x)
  return Case(relaxed(model.apply), relaxed(train), variables, x)


@functools.cache
def nnx_conv_net() -> Case:
  definition, params, stats = nnx.split(nnx.eval_shape(lambda: NnxConvNet(nnx.Rngs(0))), nnx.Param, nnx.BatchStat)

  def apply(variables, x, train=False):
    state = [nnx.State(variables["params"]), nnx.State(variables["batch_stats"])]
    model = nnx.merge(definition, *(_filled(like, s) for like, s in zip((params, stats), state)))
    model.train() if train else model.eval()
    out = model(x)
    return (out, {"batch_stats": nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))}) if train else out

  variables = {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(stats)}
  return Case(apply, lambda v, x: apply(v, x, True), fill(variables), images())


def _filled(like, state):
  filled = jax.tree.map(lambda leaf: leaf, like)
  nnx.replace_by_pure_dict(filled, nnx.to_pure_dict(state))
  return filled


@functools.cache
def plain() -> Case:
  """A function of a dict and an array, its kernel on the left and transposed."""
  variables = {
    "params": {
      "first": {"w": normal(0, 5, 192), "b": jnp.ones(5)},
      "last": normal(1, 5, 3),
    }
  }

  def fn(variables, x):
    p = variables["params"]
    x = x.reshape(x.shape[0], -1)
    x = jax.nn.relu((p["first"]["w"] @ x.T).T + p["first"]["b"])
    return x @ p["last"]

  return Case(fn, fn, variables, images())


CASES = {"mlp": mlp, "conv_net": conv_net, "nnx_conv_net": nnx_conv_net, "plain": plain}


def folded(fn, variables, *inputs):
  """(fn2, variables2, edits) of a function whose batch norms are folded."""
  return opened(graph.fold_batch_norms(graph.net(fn, variables, *inputs)))


def cut(fn, variables, keep, *inputs):
  """(fn2, variables2, edits) of a function of which these channels are kept."""
  return opened(graph.keep_channels(graph.net(fn, variables, *inputs), keep))


def opened(net):
  return net.infer, net.variables, list(net.edits)
