"""Kernels of few bits as int4 in .onnx files: the codes and numbers of the same network, in half the bytes."""

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest

from leanax import deploy
from leanax.deploy import ir, reference
from tests.deploy import nets

FORMAT = deploy.onnx()


def with_bits(network, bits):
  """The network with kernels of so many bits: their codes cut to them, on scales as much wider."""
  tensors = dict(network.tensors)
  for layer in network.layers:
    kernel = tensors.get(getattr(layer, "kernel", None))
    if kernel is None or kernel.grid is None:
      continue
    highest = 2 ** (bits - 1) - 1
    codes = np.clip(np.rint(kernel.data * (highest / 127)), -highest, highest).astype(np.int8)
    numbers = {"scale": kernel.scale * np.float32(127 / highest)}
    grid = dataclasses.replace(kernel.grid, **numbers, bits=bits, narrow=True)
    tensors[kernel.name] = kernel._replace(data=codes, grid=grid)
    if layer.bias is not None:
      both = ir.bias_grid(tensors[layer.inputs[0]], tensors[kernel.name])
      steps = np.rint(tensors[layer.bias].data * (highest / 127)).astype(np.int32)
      tensors[layer.bias] = tensors[layer.bias]._replace(grid=both, data=steps)
  return ir.check(network._replace(tensors=tensors))


def floats_of(network):
  """The network in floats with its kernels on their grids, and the same with the kernels as floats."""
  held, plain = dict(network.tensors), dict(network.tensors)
  for name, tensor in network.tensors.items():
    if tensor.grid is None:
      continue
    if tensor.dtype == "int8" and tensor.data is not None:
      plain[name] = ir.Tensor(name, tensor.shape, data=tensor.scale * tensor.data.astype(np.float32))
    elif tensor.dtype == "int32":
      held[name] = plain[name] = ir.Tensor(name, tensor.shape, data=tensor.scale * tensor.data.astype(np.float32))
    else:
      held[name] = plain[name] = ir.Tensor(name, tensor.shape)
  return ir.check(network._replace(tensors=held)), ir.check(network._replace(tensors=plain))


def optimized(content, path):
  """The operators that onnxruntime runs."""
  options = onnxruntime.SessionOptions()
  options.optimized_model_filepath, options.log_severity_level = str(path), 4
  onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
  return {node.op_type for node in onnx.load(path).graph.node}


def weights(network):
  return sum(network.tensors[layer.kernel].data.size for layer in network.layers if hasattr(layer, "kernel"))


@pytest.mark.parametrize("make", [nets.mlp, nets.lenet, nets.resnet])
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_int8_networks_have_the_codes_of_the_reference(make, bits, tmp_path):
  maker = make(0)
  network = with_bits(maker.network(), bits)
  x, content = maker.images(33), FORMAT.write(network)
  runner = FORMAT.open(content)
  expected = reference.run(network, x, runner.requantize)
  assert np.ptp(expected.astype(int)) > 20
  assert deploy.compare(runner.codes(x), expected).count == 0
  held = [one for one in onnx.load_from_string(content).graph.initializer if one.data_type == onnx.TensorProto.INT4]
  assert sum(len(one.raw_data) for one in held) == sum(-(-int(np.prod(one.dims)) // 2) for one in held)
  assert sum(int(np.prod(one.dims)) for one in held) == weights(network)
  # The integer kernels are those of int8 weights: the Casts are gone when the file is open.
  if bits == 4:
    ran = optimized(content, tmp_path / "x.onnx")
    assert ran == optimized(FORMAT.write(maker.network()), tmp_path / "x.onnx") and "Cast" not in ran


def test_a_file_is_smaller_by_half_a_byte_for_each_weight():
  maker = nets.mlp(0, widths=(64, 128, 128, 10))
  eight, four = (len(FORMAT.write(with_bits(maker.network(), bits))) for bits in (8, 4))
  assert abs((eight - four) - weights(maker.network()) / 2) < 300  # of names and Casts


@pytest.mark.parametrize("make", [nets.mlp, nets.resnet])
@pytest.mark.parametrize("bits", [8, 4])
def test_float_layers_compute_with_the_values_of_their_codes(make, bits, tmp_path):
  maker = make(1)
  held, plain = floats_of(with_bits(maker.network(), bits))
  x = np.random.default_rng(0).normal(size=maker.images(7).shape).astype(np.float32)
  content = FORMAT.write(held)
  np.testing.assert_array_equal(FORMAT.open(content).run(x), FORMAT.open(FORMAT.write(plain)).run(x))
  assert "DequantizeLinear" not in optimized(content, tmp_path / "x.onnx")
  saved = len(FORMAT.write(plain)) - len(content)
  assert saved > weights(plain) * (4 - bits / 8) - 2000


def test_only_files_with_int4_need_the_newer_operators():
  for bits, versions in ((8, (13, 7)), (4, (21, 10))):
    model = onnx.load_from_string(FORMAT.write(with_bits(nets.mlp(0).network(), bits)))
    assert (model.opset_import[0].version, model.ir_version) == versions


@pytest.mark.parametrize("operation", ["max", "min", "mean", "prod", "sum", "any", "all"])
def test_reductions_beside_int4(operation):
  """Their axes became an input in a version between the two."""
  truth = operation in ("any", "all")
  kernel = ir.Tensor(
    "w", (3, 4), "int8", ir.grid(np.full(4, 0.1, np.float32), bits=4, axis=1), np.ones((3, 4), np.int8)
  )
  tensors = {"w": kernel, "x": ir.Tensor("x", (None, 2, 3)), "m": ir.Tensor("m", (None, 2, 4))}
  layers = [ir.Dense("dense", ("x",), "m", "w", None)]
  if truth:
    tensors |= {"b": ir.Tensor("b", (None, 2, 4), "bool"), "r": ir.Tensor("r", (None, 4), "bool")}
    layers += [
      ir.Cast("c", ("m",), "b"),
      ir.Reduce("l", ("b",), "r", operation, (1,), False),
      ir.Cast("e", ("r",), "y"),
    ]
  else:
    layers.append(ir.Reduce("l", ("m",), "y", operation, (1,), False))
  tensors["y"] = ir.Tensor("y", (None, 4))
  network = ir.check(ir.Network(tuple(layers), tensors, {"x": "x"}, {"y": "y"}))
  x = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
  real = x.astype(np.float64) @ (0.1 * np.ones((3, 4)))
  expected = getattr(np, operation)(real, axis=1)
  np.testing.assert_allclose(FORMAT.open(FORMAT.write(network)).run(x), expected, rtol=1e-5, atol=1e-6)
