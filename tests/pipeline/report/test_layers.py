"""Figures of layers that follow from their shapes: multiply-accumulates, against what the traced model counts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import deploy, graph
from leanax.deploy import ir
from leanax.pipeline.report import layers


def net(v, x):
  """A grouped convolution, a product of activations, a scan of layers, and a transposed convolution."""
  dims = ("NHWC", "HWIO", "NHWC")
  x = jax.lax.conv_general_dilated(x, v["conv"], (1, 1), "SAME", dimension_numbers=dims, feature_group_count=2)
  rows = x.reshape(x.shape[0], 16, 4)
  rows = jnp.einsum("bij,bjk->bik", jnp.einsum("bik,bjk->bij", rows, rows), rows)
  rows, _ = jax.lax.scan(lambda rows, kernel: (jnp.maximum(rows @ kernel, 0), None), rows, v["blocks"])
  return jax.lax.conv_transpose(rows.reshape(-1, 4, 4, 4), v["up"], (2, 2), "VALID", dimension_numbers=dims)


SHAPES = {"conv": (3, 3, 1, 4), "blocks": (3, 4, 4), "up": (2, 2, 4, 3)}
VARIABLES = {key: jax.ShapeDtypeStruct(shape, np.float32) for key, shape in SHAPES.items()}
EXAMPLE = jax.ShapeDtypeStruct((1, 4, 4, 2), np.float32)


def test_multiply_accumulates_are_those_of_the_traced_model():
  network = deploy.lift(net, VARIABLES, EXAMPLE, prove=False)
  found = {layer.name: layers._macs(layer, network.tensors) for layer in network.layers}
  expected = [16 * 4 * 9, 2 * 16 * 16 * 4, 3 * 16 * 16, 16 * 4 * 4 * 3]  # the scan has three layers of 16 x 4 x 4
  assert sum(found.values()) == sum(expected) == graph.trace(net, VARIABLES, EXAMPLE).total
  assert sorted(number for number in found.values() if number) == sorted(
    [expected[0], expected[1] // 2, expected[1] // 2, *[expected[2] // 3] * 3, expected[3]]
  )


def test_a_large_network_is_measured_on_fewer_examples():
  tensors = {name: ir.Tensor(name, (None, 2**20)) for name in ("a", "b")}
  small = {name: ir.Tensor(name, (None, 8)) for name in ("a", "b")}
  for given, examples in ((tensors, 16), (small, layers.EXAMPLES)):
    assert layers.examples_of(ir.Network((ir.Relu("b", ("a",), "b"),), given, {"a": "a"}, {"b": "b"})) == examples


def test_the_noise_is_a_ratio_of_powers_in_decibels():
  """A noise of a tenth of the amplitude is 20 decibels below; half a code of noise is 6.02 decibels for each bit."""
  x = np.array([3.0, -4.0, 12.0])
  assert layers.decibels(x, x + np.array([0.0, 0.0, 1.3])) == pytest.approx(20.0)  # 13 against 1.3
  assert layers.decibels(x, 1.5 * x) == pytest.approx(20 * math.log10(2))
  numbers = np.random.default_rng(0).uniform(-1, 1, 200_000)
  for bits in (4, 8):
    step = 2.0 / 2**bits
    rounded = (np.floor(numbers / step) + 0.5) * step
    assert layers.decibels(numbers, rounded) == pytest.approx(6.02 * bits, abs=0.05)
  assert layers.decibels(x, x) is None and layers.decibels(0 * x, x) is None
