"""Clips that change no code leave an int8 network; those that do, or whose input something else reads, stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from leanax import deploy, graph

X = np.random.default_rng(0).normal(size=(16, 5, 5, 3)).astype(np.float32)
VARIABLES = {
  "a": 3 * np.random.default_rng(1).normal(size=(3, 3, 3, 4)).astype(np.float32),
  "b": np.random.default_rng(2).normal(size=(4, 2)).astype(np.float32),
}


def conv(v, x):
  return jax.lax.conv_general_dilated(x, v["a"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def clipped(v, x):
  return jax.nn.relu6(conv(v, x)).mean((1, 2)) @ v["b"]


def read_twice(v, x):
  y = jax.nn.relu(conv(v, x))  # below 6 with the small kernel, so that the clip changes nothing
  return (jax.nn.relu6(y).mean((1, 2)) @ v["b"], y.mean((1, 2)))


def lifted(fn, change=None, factor=1.0):
  variables = {**VARIABLES, "a": np.float32(factor) * VARIABLES["a"]}
  net = quant.post_training(graph.net(fn, variables, X[:1]), [X], "w8a8")
  grids = dict(quant.grids(net))
  changed = change(grids) if change else grids
  plain = quant.float_net(net)
  network = deploy.lift(plain.infer, plain.variables, X[:1], changed)
  return network, np.asarray(jax.jit(net.infer)(net.variables, X)) if change is None and fn is clipped else None


def clips(network):
  return [layer for layer in network.layers if isinstance(layer, deploy.ir.Activation)]


@pytest.mark.parametrize("name", ["litert", "onnx"])
def test_a_relu6_whose_grid_ends_at_6_is_no_layer_and_the_codes_are_those_of_the_simulation(name):
  network, simulated = lifted(clipped)
  assert not clips(network)
  runner = deploy.file_format(name).open(deploy.file_format(name).write(network))
  assert [codes.count for codes in deploy.parity(network, runner, X, simulated).values()] == [0, 0, 0]


def test_a_clip_that_codes_reach_beyond_stays():
  def wider(grids):
    assert "a:out" in grids
    return {**grids, "a:out": quant.affine(jnp.float32(0.0), jnp.float32(9.0), 8)}

  network, _ = lifted(clipped, wider)
  (layer,) = clips(network)
  assert layer.function == "relu6"
  given, made = (network.tensors[name].grid for name in (*layer.inputs, layer.output))
  assert deploy.ir.same_grid(given, made)
  x = deploy.ir.quantize(X, network.tensors["input"])
  found = deploy.reference.run(network, x)
  file = deploy.litert().open(deploy.litert().write(network))
  np.testing.assert_array_equal(file.compute([x])[0], found)


def test_a_clip_whose_input_is_read_elsewhere_keeps_that_input():
  network, _ = lifted(read_twice, factor=0.05)
  assert clips(network)
  names = {name for layer in network.layers for name in layer.inputs}
  assert names <= {*network.tensors}
  x = deploy.ir.quantize(X, network.tensors["input"])
  expected = deploy.reference.run(network, {"input": x})
  found = deploy.litert().open(deploy.litert().write(network)).compute([x])
  for one, other in zip(expected.values(), found, strict=True):
    np.testing.assert_array_equal(one, other)
