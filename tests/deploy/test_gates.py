"""Networks of gates and attention: what the simulation rounds, so that runtimes multiply and look up codes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from leanax.deploy import ir
from leanax.deploy.formats.litert import plan
from tests.deploy.test_moves import calibrated, check_codes
from tests.numbers import initial, normal


class Gates(nn.Module):
  """Squeeze and excite by two functions, a silu, and a gated product of two layers."""

  train: bool = False

  @nn.compact
  def __call__(self, x):
    drop = nn.Dropout(0.2, deterministic=not self.train)
    x = nn.hard_swish(nn.Conv(6, (3, 3), feature_group_count=2)(x))
    gate = nn.hard_sigmoid(nn.Dense(6)(nn.relu(nn.Dense(4)(x.mean((1, 2))))))
    x = nn.relu(nn.Conv(6, (1, 1))(drop(x * gate[:, None, None])))
    gate = nn.sigmoid(drop(nn.Dense(6)(x.mean((1, 2), keepdims=True))))
    x = nn.silu(nn.Conv(6, (1, 1))(x * gate))
    return nn.Dense(3)(nn.Dense(5)(x) * nn.tanh(nn.Dense(5)(x)))


class Attention(nn.Module):
  """A tanh, attention whose shares drop out in training, a softmax and sigmoids at the end."""

  train: bool = False

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(8)(nn.tanh(nn.Dense(8)(x)))
    x = x + nn.MultiHeadDotProductAttention(2, dropout_rate=0.1, deterministic=not self.train)(x, x)
    return {"one": nn.softmax(nn.Dense(4)(x)), "several": nn.sigmoid(nn.Dense(3)(x))}


NETS = {
  "gates": (Gates, (6, 6, 4), {"LOGISTIC": 2, "TANH": 1, "MUL": 5, "HARD_SWISH": 1}),  # one of a hard sigmoid
  "attention": (Attention, (5, 6), {"LOGISTIC": 1, "TANH": 1, "SOFTMAX": 2, "BATCH_MATMUL": 2, "MUL": 1}),
}


@pytest.mark.parametrize("name", NETS)
def test_codes_are_those_of_the_simulation(name):
  module, shape, operators = NETS[name]
  x = normal(0, (20, *shape))
  network, simulated = calibrated(module().apply, initial(module(), x[:1], seed=1), x)
  products = [layer for layer in network.layers if isinstance(layer, ir.Binary) and layer.operation == "mul"]
  kinds = [network.tensors[layer.output].dtype for layer in products]
  assert kinds == (["int8"] * 4 if name == "gates" else ["float32"])  # a query's factor is a constant
  matrices = [network.tensors[layer.output].dtype for layer in network.layers if isinstance(layer, ir.MatMul)]
  assert matrices == ([] if name == "gates" else ["int8"] * 2)
  planned = plan.planned(network)
  codes = [op.code for op in planned.operators]
  assert {code: codes.count(code) for code in operators} == operators
  fixed = [op for op in planned.operators if op.code in ("TANH", "SOFTMAX")]
  assert all(planned.tensors[op.output].dtype == "int8" for op in fixed)
  check_codes(network, x, simulated)


@pytest.mark.parametrize("name", NETS)
def test_grids_are_the_same_in_training(name):
  module, shape, _ = NETS[name]
  x = normal(0, (4, *shape))
  variables = jax.eval_shape(module().init, jax.random.key(0), x)
  evaluated = quant.quantize(module().apply, "w8a8 learned").plan(variables, x)
  apply = lambda v, x: module(True).apply(v, x, rngs={"dropout": jax.random.key(0)})
  trained = quant.quantize(apply, "w8a8 learned").plan(variables, x)
  assert trained.made == evaluated.made and trained.quantizers == evaluated.quantizers
  assert any(one.fixed for one in evaluated.quantizers.values())


@pytest.mark.parametrize("swapped", [False, True])
def test_what_weights_of_attention_multiply_is_the_factor_with_its_zero_at_zero(swapped):
  v, x = {name: normal(at, (4, 4)) for at, name in enumerate("abc")}, normal(5, (8, 3, 4)) + 1

  def fn(v, x):
    shares, values = nn.softmax(x @ v["a"]).swapaxes(1, 2), nn.relu(x @ v["b"])
    mixed = values.swapaxes(1, 2) @ shares.swapaxes(1, 2) if swapped else shares @ values
    return nn.softmax(mixed) @ nn.sigmoid(mixed @ v["c"]).swapaxes(1, 2)  # of two on fixed grids neither has

  network, simulated = calibrated(fn, v, x)
  assert network.tensors["b:out"].zero_point == 0  # at the lowest code otherwise, as what a ReLU makes
  mixed = next(layer for layer in network.layers if isinstance(layer, ir.MatMul))
  assert network.tensors[mixed.output].dtype == "int8"
  assert [network.tensors[name].zero_point for name in mixed.inputs] == [-128, 0]
  check_codes(network, x, simulated)


@pytest.mark.parametrize(
  ("fn", "rules", "rounded"),
  [
    (lambda v, x: nn.silu(x @ v["a"]) @ v["b"], "w8a8", True),
    (lambda v, x: nn.silu(x @ v["a"]) @ v["b"], "w8a6", False),  # no file has such grids
    (lambda v, x: nn.silu(x @ v["a"]) @ v["b"], {"b": "float", "*": "w8a8"}, False),  # the product has no grid
    (lambda v, x: jnp.exp(nn.silu(x @ v["a"])) @ v["b"], "w8a8", False),
    (lambda v, x: (x @ v["a"]) * nn.sigmoid(1.7 * (x @ v["a"])) @ v["b"], "w8a8", False),
    (lambda v, x: nn.hard_swish(x @ v["a"]) @ v["b"], "w8a8", False),
  ],
)
def test_the_sigmoid_of_a_silu_is_rounded_where_a_file_multiplies_codes(fn, rules, rounded):
  v, x = {"a": jnp.eye(3), "b": jnp.eye(3)}, jnp.ones((4, 3))
  policy = rules if isinstance(rules, dict) else quant.policy(rules, ends=None)
  assert ("a:gate" in quant.quantize(fn, policy).plan(v, x).made) == rounded


@pytest.mark.parametrize("drop", [lambda h: h, lambda h: h.reshape(2, 2, 3).reshape(4, 3)])
def test_dropout_behind_a_silu_changes_no_grid(drop):
  """A step of training has the grids of the file, in front of dropout as behind it."""
  v, x = {"a": jnp.eye(3), "b": jnp.eye(3)}, jnp.ones((4, 3))

  def fn(v, x, train):
    h = nn.silu(x @ v["a"])
    kept = jax.random.bernoulli(jax.random.key(0), 0.5, h.shape)
    return drop(jnp.where(kept, h / 0.5, 0.0) if train else h) @ v["b"]

  plans = [quant.quantize(lambda v, x, train=train: fn(v, x, train), "w8a8").plan(v, x) for train in (False, True)]
  assert plans[0].tensors == plans[1].tensors and plans[0].made == plans[1].made == {"a:out#1", "a:gate"}


def test_fixed_grids_are_of_eight_bits_and_the_rest_is_seen():
  fn, v, x = lambda v, x: nn.sigmoid(x @ v["a"]) @ v["b"], {"a": jnp.eye(3), "b": jnp.eye(3)}, normal(0, (4, 3))
  for setting, fixed in (("w8a8", True), ("w8a8 learned", True), ("w4a6", False), ("w8a8 percentile", True)):
    model = quant.quantize(fn, quant.policy(setting, ends=None))
    qparams, state = model.calibrate(v, [x])
    grid = model.grids(qparams, state, v, x)["a:out"]
    assert ((float(grid.scale), int(grid.zero_point)) == (1 / 256, -128)) == fixed
    assert not fixed or "a:out" not in qparams


def test_a_factor_that_only_products_read_second_has_its_zero_point_at_zero():
  v, x = {name: normal(at, (4, 4)) for at, name in enumerate("abc")}, normal(5, (8, 3, 4)) + 1

  def fn(v, x):
    a, b, c = (nn.relu(x @ v[name]) for name in "abc")
    return a @ b.swapaxes(1, 2) @ c, c

  model = quant.quantize(fn, quant.policy("w8a8", ends=None))
  state = model.calibrate(v, [x])
  grids = model.grids(*state, v, x)
  assert int(grids["b:out"].zero_point) == 0  # at the lowest code otherwise, as what a ReLU makes
  np.testing.assert_allclose(grids["b:out"].scale, nn.relu(x @ v["b"]).max() / 127, rtol=1e-6)
  assert int(grids["a:out"].zero_point) == int(grids["c:out"].zero_point) == -128  # the output reads c, too
