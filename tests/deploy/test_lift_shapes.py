"""Functions lifted on shapes, before anything is trained: the same layers, nothing compiled, and plain refusals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from leanax import deploy
from leanax.core.errors import UserError


class Net(nn.Module):
  act: str = "relu"

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
    x = nn.max_pool(x, (2, 2), (2, 2))
    return nn.Dense(3)(Inner(self.act)(x).mean((1, 2)))


class Inner(nn.Module):
  act: str

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (1, 1))(x)
    return jax.nn.relu(x) if self.act == "relu" else jnp.median(x, -1, keepdims=True)


X = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)


def shapes(net):
  return jax.eval_shape(net.init, jax.random.key(0), X)


def test_shapes_give_the_layers_of_numbers():
  def fn(variables, x):  # no batch mean, whose factor needs a compilation
    x = nn.relu(x.reshape(x.shape[0], -1) @ variables["a"] + variables["b"])
    return (x @ variables["c"]) / 2.0

  variables = {"a": jnp.ones((64, 4)), "b": jnp.zeros(4), "c": jnp.ones((4, 3))}
  real = deploy.lift(fn, variables, X)
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
  given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
  network = deploy.lift(fn, given, X, prove=False)
  assert not [name for name in compiled if name.endswith("backend_compile_duration")]
  assert network.layers == real.layers
  assert {n: (t.shape, t.dtype) for n, t in network.tensors.items()} == {
    n: (t.shape, t.dtype) for n, t in real.tensors.items()
  }
  deploy.litert().check(network)
  with pytest.raises(UserError, match="'a' is a shape without numbers"):
    deploy.lift(fn, given, X)


def test_a_refusal_names_the_function_the_layer_and_the_line():
  net = Net("median")
  with pytest.raises(
    UserError, match=r"cannot lift '\w+' at test_lift_shapes.py:\d+: .*part of 'median', in 'Net/Inner"
  ):
    deploy.lift(net.apply, shapes(net), X, prove=False)
