"""Recurrent cells, whose turns are written out, in the runtimes: against the function, and by hand in numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import quant
from leanax import deploy, graph
from leanax.core.errors import UserError
from leanax.engine import models
from tests.deploy import runtimes

X = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)  # (N, turns, features)
SIZE = 6


class Linen(nn.Module):
  cell: type = nn.LSTMCell
  kind: str = ""

  @nn.compact
  def __call__(self, x, lengths=None):
    if self.kind == "both ways":
      return nn.Bidirectional(nn.RNN(self.cell(SIZE)), nn.RNN(nn.GRUCell(SIZE)))(x)
    if self.kind == "loop":
      cell = self.cell(SIZE)
      carry = cell.initialize_carry(jax.random.key(0), x[:, 0].shape)
      for turn in range(x.shape[1]):
        carry, y = cell(carry, x[:, turn])
      return y
    options = {"reverse": True, "keep_order": True} if self.kind == "reverse" else {}
    return nn.RNN(self.cell(SIZE), **options)(x, seq_lengths=lengths)


def linen(cell, kind=""):
  module = Linen(cell, kind)
  return module.apply, module.init(jax.random.key(0), X)


def of_nnx(cell):
  net = models.net(nnx.RNN(cell(4, SIZE, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0)), None, X)
  return net.infer, net.variables


def scanned():
  rng = np.random.default_rng(1)
  v = {name: jnp.asarray(rng.normal(size=shape) / 2, jnp.float32) for name, shape in SHAPES.items()}

  def lstm(v, x):
    def turn(carry, x):
      h, c = carry
      i, f, g, o = jnp.split(x @ v["wx"] + h @ v["wh"] + v["b"], 4, -1)
      c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
      h = jax.nn.sigmoid(o) * jnp.tanh(c)
      return (h, c), h

    start = jnp.zeros((x.shape[0], SIZE))
    return jax.lax.scan(turn, (start, start), x.swapaxes(0, 1))[1].swapaxes(0, 1)

  return lstm, v


SHAPES = {"wx": (4, 4 * SIZE), "wh": (SIZE, 4 * SIZE), "b": (4 * SIZE,)}
CASES = {
  "linen LSTMCell": lambda: linen(nn.LSTMCell),
  "linen OptimizedLSTMCell": lambda: linen(nn.OptimizedLSTMCell),
  "linen GRUCell": lambda: linen(nn.GRUCell),
  "reverse": lambda: linen(nn.LSTMCell, "reverse"),
  "both ways": lambda: linen(nn.LSTMCell, "both ways"),
  "Python loop": lambda: linen(nn.GRUCell, "loop"),
  "nnx LSTMCell": lambda: of_nnx(nnx.LSTMCell),
  "nnx GRUCell": lambda: of_nnx(nnx.GRUCell),
  "lax.scan": scanned,
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", CASES)
def test_recurrent_cells_run_in_both_runtimes(name):
  fn, v = CASES[name]()
  network, expected = deploy.lift(fn, v, X), np.asarray(fn(v, X))
  for runner in runtimes.runners(network, kernels=("xnnpack",)):
    np.testing.assert_allclose(runner.run(X), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(runner.run(X[:1]), expected[:1], rtol=1e-5, atol=1e-6)


def test_an_lstm_is_that_of_its_equations():
  """In float64, by hand."""
  fn, v = scanned()
  wx, wh, b = (np.asarray(v[name], np.float64) for name in SHAPES)
  gate = lambda x: 1 / (1 + np.exp(-x))
  h, c, made = np.zeros((5, SIZE)), np.zeros((5, SIZE)), []
  for turn in range(3):
    i, f, g, o = np.split(X[:, turn] @ wx + h @ wh + b, 4, -1)
    c = gate(f) * c + gate(i) * np.tanh(g)
    h = gate(o) * np.tanh(c)
    made.append(h)
  (runner,) = list(runtimes.runners(deploy.lift(fn, v, X), kernels=("xnnpack",)))[:1]
  np.testing.assert_allclose(runner.run(X), np.stack(made, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
  "name, turns", [pytest.param("linen LSTMCell", 2, marks=pytest.mark.slow), ("linen GRUCell", 3), ("lax.scan", 1)]
)
def test_cells_of_8_bits_are_dense_layers_of_integers_among_floats(name, turns):
  """Each turn's part of the input has a grid of its own, in the file too."""
  (fn, v), x = CASES[name](), X[:, :turns] * np.geomspace(1, 9, turns, dtype=np.float32)[:, None]
  fn = graph.unrolled(fn)  # a grid for each turn
  quantized = quant.post_training(graph.net(fn, v, x), [x], quant.policy("w8a8", ends=None))
  network, simulated = deploy.lift(fn, v, x, quant.grids(quantized)), quantized.infer(quantized.variables, x)
  dense = [layer for layer in network.layers if isinstance(layer, deploy.ir.Dense)]
  integers = [layer for layer in dense if network.tensors[layer.output].dtype == "int8"]
  assert len(integers) == len(dense) and quant.grids(quantized).keys() <= network.tensors.keys()
  for runner in runtimes.runners(network, kernels=("xnnpack",)):
    for pair, codes in deploy.parity(network, runner, x, np.asarray(simulated)).items():
      assert codes.count == 0, pair


def test_lengths_that_depend_on_the_input_are_refused_in_the_words_of_flax():
  fn, v = linen(nn.LSTMCell, "reverse")
  lengths = lambda x: jnp.sum(x[..., 0] > 0, -1)
  with pytest.raises(UserError, match=r"cannot lift 'rem'.*seq_lengths of a reversed RNN.*stablehlo"):
    deploy.lift(lambda v, x: fn(v, x, lengths(x)), v, X)
  known = lambda v, x: fn(v, x, jnp.full(x.shape[0], 2))
  for runner in runtimes.runners(deploy.lift(known, v, X), kernels=("xnnpack",)):
    np.testing.assert_allclose(runner.run(X), known(v, X), rtol=1e-5, atol=1e-6)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", CASES)
def test_cells_are_lifted_before_they_are_trained(name):
  """Of shapes alone, as exports are checked before the first stage: a carry of zeros is one number per channel."""
  fn, v = CASES[name]()
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), v)
  network = deploy.lift(fn, shapes, X, prove=False)
  deploy.litert().check(network)
  deploy.onnx().check(network)


def test_names_in_an_onnx_file_are_a_path_and_an_operator():
  """A chain of operators would make them as long as the network is deep."""
  onnx = pytest.importorskip("onnx")
  fn, v = CASES["linen GRUCell"]()
  held = onnx.load_from_string(deploy.onnx().write(deploy.lift(fn, v, X, prove=False))).graph
  names = [name for node in held.node for name in node.output] + [one.name for one in held.initializer]
  assert len(set(names)) == len(names) and all(name.count(":") < 3 for name in names)
  assert "GRUCell_0/ir/kernel:Sigmoid" in names and "GRUCell_0/iz/kernel" in names
