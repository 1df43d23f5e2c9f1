"""Functions lifted on shapes, before anything is trained: the same layers, nothing compiled, and plain refusals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import deploy
from leanax.core.errors import UserError
from leanax.deploy import ir
from tests.numbers import normal


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


# A constant behind a convolution (N, 3, 3, 4), made of variables; whether it is one number per channel.
CONSTANTS = {
  "spread": (lambda v: jnp.broadcast_to(v["c"], (3, 3, 4)), True),
  "in another layout": (lambda v: v["row"].T.reshape(1, 1, 4), True),
  "computed": (lambda v: v["c"] / jnp.sqrt(v["row"][:, 0] + 1e-5) - 3.0, True),
  "of two leaves": (lambda v: v["c"] - v["row"][:, 0], True),
  "of one number": (lambda v: v["one"] * jnp.ones((3, 3, 4)), True),
  "per position": (lambda v: v["position"][..., None], False),
  "both": (lambda v: v["position"][..., None] + v["c"], False),
  "per column": (lambda v: jnp.broadcast_to(v["row"][:3], (3, 3, 1)), False),
}


@pytest.mark.parametrize("case", CONSTANTS)
def test_numbers_that_stand_for_others_vary_where_these_do(case):
  make, per_channel = CONSTANTS[case]
  sizes = {"kernel": (1, 1, 1, 4), "c": (4,), "row": (4, 1), "one": (), "position": (3, 3)}
  variables = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in sizes.items()}

  def fn(v, x):
    kernel = v["kernel"]
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")) + make(
      v
    )

  def lifted():
    return deploy.lift(fn, variables, jax.ShapeDtypeStruct((1, 3, 3, 1), jnp.float32), prove=False)

  if per_channel:
    (layer,) = lifted().layers
    assert layer.bias is not None
  else:
    assert [type(layer) for layer in lifted().layers] == [ir.Conv2D, ir.Binary]


def test_what_stands_before_the_batch_is_picked_dropped_and_stacked():
  """Axes in front of the batch, as in a fused key and value and in a stack of layers' results."""
  v = {"kv": normal(0, (2, 3, 4)), "layers": normal(1, (2, 4, 4)), "probe": normal(2, (1, 4))}

  def fn(v, x):
    key, value = jnp.einsum("btd,sdh->sbth", x, v["kv"])
    value, each = jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel),) * 2, value, v["layers"])
    probe = jnp.tile(v["probe"], (len(x), 1))
    return {"out": jnp.einsum("bth,bh->bt", key, probe), "first": each[0], "again": value, "twice": value}

  x = normal(3, (7, 5, 3))
  network = deploy.lift(fn, v, x[:1])
  assert not any(isinstance(layer, ir.Transpose) for layer in network.layers)
  expected = fn(v, x)
  found = deploy.litert().open(deploy.litert().write(network)).run(x)
  for name in expected:
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_a_random_key_is_refused():
  with pytest.raises(UserError, match="an example input is a random key; a file draws no random numbers"):
    deploy.lift(lambda v, x, key: x @ v["k"], {"k": normal(0, (3, 4))}, (normal(1, (2, 3)), jax.random.key(0)))


@pytest.mark.parametrize("first", [True, False])
def test_a_constant_that_is_repeated_for_each_example_is_a_kernel(first):
  v, x = normal(0, (1, 3, 4)), normal(1, (2, 5, 3))

  def fn(v, x, alike=True):
    kernel = jnp.tile(v, (len(x), 1, 1)) if alike else v * jnp.arange(1.0, 1 + len(x))[:, None, None]
    return jnp.einsum("bco,btc->bto", kernel, x) if first else jnp.einsum("btc,bco->bto", x, kernel)

  network = deploy.lift(fn, v, x)
  np.testing.assert_allclose(deploy.reference.run(network, x), fn(v, x), rtol=1e-5, atol=1e-5)
  with pytest.raises(UserError, match="a constant has other numbers for each example of the batch"):
    deploy.lift(lambda v, x: fn(v, x, False), v, x)
