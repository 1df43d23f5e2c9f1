"""The interpreter against slow loops and exact fractions, which share nothing with it."""

from fractions import Fraction

import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.deploy import ir, reference
from tests.deploy import nets


def nearest_even(value: Fraction) -> int:
  return round(value)  # Python rounds an exact fraction half to even


def loop_conv(x, layer, tensors, zero):
  kernel = tensors[layer.kernel].data.astype(object)
  h, w, depth, channels = kernel.shape
  (top, bottom), (left, right) = layer.padding
  x = np.pad(x.astype(object), ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=zero)
  size = [ir.window_out(x.shape[1 + k], kernel.shape[k], layer.strides[k], (0, 0), layer.dilation[k]) for k in (0, 1)]
  out = np.zeros((len(x), *size, channels), object)
  per_group = channels // layer.groups
  for n, i, j, c in np.ndindex(out.shape):
    for a, b, d in np.ndindex(h, w, depth):
      row, column = i * layer.strides[0] + a * layer.dilation[0], j * layer.strides[1] + b * layer.dilation[1]
      out[n, i, j, c] += (x[n, row, column, c // per_group * depth + d] - zero) * kernel[a, b, d, c]
  return out


def exact_codes(total, layer, tensors):
  made, given, kernel = (tensors[name] for name in (layer.output, layer.inputs[0], layer.kernel))
  bias = tensors[layer.bias].data if layer.bias else np.zeros(total.shape[-1], int)
  out = np.zeros(total.shape, int)
  for place in np.ndindex(total.shape):
    channel = place[-1]
    real = Fraction(float(given.scale)) * Fraction(float(kernel.scale[channel])) / Fraction(float(made.scale))
    code = nearest_even((int(total[place]) + int(bias[channel])) * real) + made.zero_point
    out[place] = min(max(code, made.zero_point if layer.relu else -128), 127)
  return out


CONVS = {
  "same": {},
  "strided": {"strides": (2, 1), "relu": True},
  "padded": {"padding": ((1, 2), (0, 1))},
  "dilated": {"dilation": (2, 1), "bias": False},
  "depthwise": {"groups": 4, "relu": True},
  "grouped": {"groups": 2},
}


@pytest.mark.parametrize("kind", CONVS)
def test_convolutions_match_loops_over_exact_fractions(kind):
  maker = nets.Maker(3, (5, 6, 4), True)
  maker.conv(8, **CONVS[kind])
  network, x = maker.network(), maker.images(2)
  layer = network.layers[0]
  total = loop_conv(x, layer, network.tensors, network.tensors["input"].zero_point)
  got = reference.run(network, x, "single")
  assert got.dtype == np.int8
  assert (got == exact_codes(total, layer, network.tensors)).all()
  assert np.ptp(got.astype(int)) > 50


def test_dense_by_hand():
  weights = np.array([[3, -1], [2, 5]], np.int8)
  tensors = {
    "x": ir.Tensor("x", (None, 2), "int8", ir.grid(0.5, 1)),
    "k": ir.Tensor("k", (2, 2), "int8", ir.grid([0.25, 1.0], axis=1), weights),
    "b": ir.Tensor("b", (2,), "int32", ir.grid([0.125, 0.5], bits=32, axis=0), np.array([4, -6], np.int32)),
    "y": ir.Tensor("y", (None, 2), "int8", ir.grid(1.0, -3)),
  }
  network = ir.check(ir.Network((ir.Dense("d", ("x",), "y", "k", "b"),), tensors, {"x": "x"}, {"y": "y"}))
  # steps 4, -2; sums 12 - 4 + 4 = 12 and -4 - 10 - 6 = -20; times 1/8 and 1/2: 1.5 and -10, so 2 and -10, less 3.
  assert reference.run(network, np.array([[5, -1]], np.int8)).tolist() == [[-1, -13]]
  # As floats: 2.0 and -1.0.
  assert reference.run(network, np.array([[2.0, -1.0]], np.float32)).tolist() == [[-1, -13]]


def test_max_pool_ignores_the_border_and_mean_averages():
  maker = nets.Maker(0, (4, 4, 2), True)
  maker.pool(ir.MaxPool, (3, 3), (2, 2), ((1, 1), (1, 1)))
  network = maker.network()
  assert (reference.run(network, np.full((1, 4, 4, 2), -120, np.int8)) == -120).all()
  maker = nets.Maker(0, (4, 4, 2), True)
  maker.mean()
  network, x = maker.network(), maker.images(50)
  given, made = network.tensors["input"], network.tensors[network.output]
  exact = (given.scale * (x.astype(float) - given.zero_point)).mean((1, 2)) / made.scale + made.zero_point
  for rounding in reference.MODES:
    off = np.abs(reference.run(network, x, rounding) - np.clip(exact, -128, 127)).max()
    assert off <= (0.5 + 1e-3 if rounding in ("float32", "single") else 1.0)


def test_int32_accumulators_wrap():
  big = np.full((1, 1), 127, np.int8)
  tensors = {
    "x": ir.Tensor("x", (None, 1), "int8", ir.grid(1.0)),
    "k": ir.Tensor("k", (1, 1), "int8", ir.grid([1.0], axis=1), big),
    "b": ir.Tensor("b", (1,), "int32", ir.grid([1.0], bits=32, axis=0), np.array([2**31 - 1], np.int32)),
    "y": ir.Tensor("y", (None, 1), "int8", ir.grid(1.0)),
  }
  network = ir.Network((ir.Dense("d", ("x",), "y", "k", "b"),), tensors, {"x": "x"}, {"y": "y"})
  assert reference.run(network, big).item() == -128


def test_quantizes_floats_as_the_contract_says():
  grid = ir.Tensor("x", (None, 4), "int8", ir.grid(0.5, 10))
  x = np.array([[0.25, 0.75, -1.25, 1e9]], np.float32)  # 0.5, 1.5, -2.5 steps
  assert reference.quantize(x, grid).tolist() == [[10, 12, 8, 127]]
  assert ir.quantize(x, grid).tolist() == [[10, 12, 8, 127]]


def test_modes_differ_but_little():
  network, x = nets.resnet(0).network(), nets.resnet(0).images(64)
  codes = {mode: reference.run(network, x, mode).astype(int) for mode in reference.MODES}
  steps = np.abs(codes["float32"] - codes["double"])
  assert 0 < (steps > 0).mean() < 0.3
  assert steps.max() <= 2


def test_bad_input_is_one_sentence():
  network = nets.mlp(0).network()
  with pytest.raises(UserError, match=r"takes inputs of shape \(N, 20\)"):
    reference.run(network, np.zeros((2, 21), np.int8))
  with pytest.raises(UserError, match="did you mean 'double'"):
    reference.run(network, np.zeros((2, 20), np.int8), "duble")
