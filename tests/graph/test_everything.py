"""Every equation forced through the editing path: values and gradients stay the same, bit for bit.

Each model of the zoo and small models with batch norm over devices, dropout, checkpoints, scans and custom rules, as
they are evaluated and trained, plain, differentiated, mapped, and over four devices.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend import core as jex
from jax.sharding import PartitionSpec as P

from leanax import graph
from leanax.zoo import convnet, lenet, mlp, mlp_nnx, resnet
from tests.graph import models, test_control

AXIS = "devices"
IMAGES = models.normal(1, 4, 16, 16, 1)
ROWS = models.normal(2, 4, 4)


class Case(NamedTuple):
  """`fns(train, axis)` is a function of (variables, x); with an axis, statistics are taken over it."""

  fns: Callable[[bool, str | None], Callable[..., Any]]
  variables: Any
  x: jax.Array


def linen(make: Callable[[str | None], nn.Module], x: jax.Array, trains: bool = False) -> Case:
  """`trains`: the module takes `train`, has batch norm, and drops out by a key of its own for each device."""

  def fns(train, axis):
    model = make(axis)
    if not (train and trains):
      return model.apply

    def step(variables, x):
      key = jax.random.key(3)
      key = jax.random.fold_in(key, jax.lax.axis_index(axis)) if axis else key
      return model.apply(variables, x, True, mutable=["batch_stats"], rngs={"dropout": key})

    return step

  return Case(fns, models.made(make(None), x), x)


def plain() -> Case:
  init, apply = mlp.plain_mlp((8,), 3)
  return Case(lambda train, axis: apply, models.fill(jax.eval_shape(init, jax.random.key(0), ROWS)), ROWS)


def nnx_mlp() -> Case:
  definition, state = nnx.split(nnx.eval_shape(lambda: mlp_nnx.MLP(4, (8,), 3, rngs=nnx.Rngs(0))))

  def apply(variables, x):
    filled = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(filled, variables["params"])
    return nnx.merge(definition, filled)(x)

  return Case(lambda train, axis: apply, {"params": models.fill(nnx.to_pure_dict(state))}, ROWS)


def convolutional(name: str) -> Case:
  """With pools, grouped convolution and batch norm over the device's own examples."""
  found = models.CASES[name]()
  return Case(lambda train, axis: found.train if train else found.fn, found.variables, found.x)


class Layer(nn.Module):
  """A dense layer with what models have around it."""

  train: bool
  axis: str | None

  @nn.compact
  def __call__(self, x, _):
    axis = self.axis if self.train else None
    y = nn.BatchNorm(use_running_average=not self.train, momentum=0.9, axis_name=axis)(nn.Dense(4)(x))
    return x + nn.Dropout(0.5, deterministic=not self.train)(nn.gelu(y)), None


class Deep(nn.Module):
  """Layers one after the other, or scanned; with or without checkpoints."""

  axis: str | None
  remat: bool = False
  scan: bool = False

  @nn.compact
  def __call__(self, x, train=False):
    layer = nn.remat(Layer) if self.remat else Layer
    if self.scan:
      axes = {"params": 0, "batch_stats": 0}
      layer = nn.scan(layer, variable_axes=axes, split_rngs={"params": True, "dropout": True}, length=2)
      x, _ = layer(train, self.axis)(x, None)
    else:
      for _ in range(2):
        x, _ = layer(train, self.axis)(x, None)
    return nn.Dense(3)(x)


ZOO = {
  "LeNet300": lambda: linen(lambda axis: lenet.LeNet300(3), ROWS),
  "LeNet5": lambda: linen(lambda axis: lenet.LeNet5(3), IMAGES),
  "ConvNet": lambda: linen(lambda axis: convnet.ConvNet((4, 4), (8,), classes=3), IMAGES[:, :8, :8]),
  "MLP": lambda: linen(lambda axis: mlp.MLP((8,), 3), ROWS),
  "nnx MLP": nnx_mlp,
  "plain_mlp": plain,
  "ResNet": lambda: linen(
    lambda axis: resnet.ResNet((1, 1), (4, 6), 3, axis_name=axis), IMAGES[:, :8, :8], trains=True
  ),
}
SMALL = {
  "layers": lambda: linen(lambda axis: Deep(axis), ROWS, trains=True),
  "remat": lambda: linen(lambda axis: Deep(axis, remat=True), ROWS, trains=True),
  "scan": lambda: linen(lambda axis: Deep(axis, scan=True), ROWS, trains=True),
  "scan and remat": lambda: linen(lambda axis: Deep(axis, remat=True, scan=True), ROWS, trains=True),
  "conv_net": lambda: convolutional("conv_net"),
  "nnx_conv_net": lambda: convolutional("nnx_conv_net"),
  "custom rules": lambda: Case(lambda train, axis: test_control.rules, test_control.LAYERS, ROWS),
}
CASES = ZOO | SMALL
TRAINED = {"ResNet", *SMALL} - {"custom rules"}  # the others are the same function in training


def through(op, inputs, extras):
  """Binds every equation where that is possible; those that hold others are left to be opened."""
  if op.frozen or op.kind == "output" or any(True for _ in jex.jaxprs_in_params(op.params)):
    return None
  return op.bind(*inputs), {}


def gradients(fn: Callable[..., Any], axis: str | None) -> Callable[..., Any]:
  """Values, and gradients with respect to the variables and the input."""

  def total(variables, x):
    out = fn(variables, x)
    loss = sum(jnp.sum(jnp.sin(leaf) ** 2) for leaf in jax.tree.leaves(out))
    return (jax.lax.pmean(loss, axis) if axis else loss), out

  return jax.value_and_grad(total, (0, 1), has_aux=True)


def over_devices(fn: Callable[..., Any], variables: Any, x: jax.Array) -> Any:
  """Under the check of replication: what is declared to be the same on all devices has to be."""
  mesh = jax.make_mesh((4,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))

  def step(variables, x):
    (loss, out), (slopes, dx) = gradients(fn, AXIS)(variables, x)
    return loss, jax.lax.pmean(slopes, AXIS), jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), (out, dx))

  specs = (P(), P(), P(AXIS))
  return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=specs))(variables, x)


def four(x: jax.Array) -> jax.Array:
  return jnp.stack([x, 2 * x, -x, x[::-1]])


MODES: dict[str, Callable[..., Any]] = {
  "jit": lambda fn, v, x: jax.jit(fn)(v, x),
  "grad": lambda fn, v, x: jax.jit(gradients(fn, None))(v, x),
  "vmap": lambda fn, v, x: jax.jit(jax.vmap(gradients(fn, AXIS), (None, 0), axis_name=AXIS))(v, four(x)),
  "pmap": lambda fn, v, x: jax.pmap(gradients(fn, AXIS), AXIS, in_axes=(None, 0))(v, four(x)),
  "shard_map": lambda fn, v, x: over_devices(fn, v, four(x).reshape(-1, *x.shape[1:])),
}
QUICK = {(name, "grad") for name in ("nnx MLP", "plain_mlp", "nnx_conv_net", "custom rules")}
QUICK |= {("scan and remat", mode) for mode in ("vmap", "pmap", "shard_map")}


@functools.cache
def case(name: str) -> Case:
  return CASES[name]()


def table() -> list[Any]:
  """The whole product; what is not quick is slow."""
  rows = []
  for name in CASES:
    for train in (False, True) if name in TRAINED else (False,):
      for mode in MODES:
        quick = (name, mode) in QUICK and train == (name in TRAINED)
        rows.append(pytest.param(name, train, mode, marks=() if quick else pytest.mark.slow))
  return rows


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name, train, mode", table())
def test_everything_rebuilt_is_bitwise_the_same(name, train, mode):
  fns, variables, x = case(name)
  fn = fns(train, AXIS if mode in ("vmap", "pmap", "shard_map") else None)
  again = graph.rewrite(fn, through, everything=True)
  expected = MODES[mode](fn, variables, x)
  found = MODES[mode](lambda v, x: again({}, v, x)[0], variables, x)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
