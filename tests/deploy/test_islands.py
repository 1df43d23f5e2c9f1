"""Networks in which integer layers hand codes to float layers and take them back: simulation, reference and files."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import deploy
from leanax.core.errors import UserError
from leanax.deploy import ir, reference
from leanax.deploy.formats.litert import plan
from quant.quantize import quantize
from tests.numbers import initial, normal


class Camera(nn.Module):
  """Functions that are no ReLU, one float layer among integer ones, a sum that a norm reads, a softmax at the end."""

  @nn.compact
  def __call__(self, x):
    x = nn.hard_swish(nn.Conv(6, (3, 3), strides=2)(x))
    x = x + nn.Conv(6, (3, 3), feature_group_count=6)(x)
    x = nn.silu(x) * 0.5
    x = nn.gelu(nn.Conv(4, (1, 1))(x))
    x = nn.relu(nn.Dense(8, name="plain")(x.mean((1, 2))))
    return {"shares": nn.softmax(nn.Dense(5)(x)), "hidden": x}


class Pixels(nn.Module):
  """A class for each pixel: ReLU6 whose grid its convolution has, a resize, a join, and a transposed convolution."""

  @nn.compact
  def __call__(self, x):
    wide = nn.relu6(nn.Conv(4, (3, 3))(x))
    deep = nn.relu(nn.Conv(4, (3, 3), strides=2)(wide))
    deep = jax.image.resize(deep, wide.shape, "bilinear")
    y = nn.ConvTranspose(3, (2, 2), strides=(2, 2))(jnp.concatenate([deep, wide], -1))
    return nn.Conv(2, (1, 1))(jnp.clip(y, -0.5, 6.0))


@functools.cache
def calibrated(module, setting):
  x = normal(0, (40, 9, 8, 3))
  variables = initial(module, x[:1], seed=1)
  model = quantize(module.apply, policy(setting))
  state = model.calibrate(variables, [x])
  return variables, x, model.grids(*state, variables, x), model.apply(*state, variables, x)[0]


def camera(setting):
  return calibrated(Camera(), setting)


SETTINGS = ("w8a8", ("plain/*", "float", "*", "w4a8"))


def policy(setting):
  return setting if isinstance(setting, str) else dict(zip(setting[::2], setting[1::2], strict=True))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("setting", SETTINGS)
def test_codes_are_those_of_the_simulation(setting):
  variables, x, grids, simulated = camera(setting)
  network = deploy.lift(Camera().apply, variables, x[:1], grids)
  kinds = {layer.name: type(layer).__name__ for layer in network.layers}
  floats = {layer.name for layer in network.layers if network.tensors[layer.output].dtype == "float32"}
  assert {"Conv_0/kernel", "Conv_1/kernel", "Conv_2/kernel", "Dense_0/kernel"}.isdisjoint(floats)
  assert ("plain/kernel" in floats) == (setting != "w8a8")
  assert {"Dequantize", "Quantize", "Activation", "Softmax"} <= set(kinds.values())
  file = deploy.litert().open(deploy.litert().write(network))
  found = deploy.parity(network, file, x, simulated)
  assert found["simulation/runtime"].max_steps <= 1
  assert {pair: mismatch.count for pair, mismatch in found.items()} == dict.fromkeys(found, 0)
  made, expected = deploy.onnx().open(deploy.onnx().write(network)).batches(x), reference.run(network, x, "onnxruntime")
  assert deploy.compare(made["hidden"], expected["hidden"]).count == 0
  assert deploy.compare(made["shares"], expected["shares"]).max_steps <= 1  # onnxruntime's integer softmax is a table


def test_pixels_have_the_codes_of_the_simulation():
  variables, x, grids, simulated = calibrated(Pixels(), "w8a8")
  network = deploy.lift(Pixels().apply, variables, x[:1], grids)
  floats = {type(layer) for layer in network.layers if network.tensors[layer.output].dtype == "float32"}
  assert floats == {ir.Dequantize, ir.Resize}
  for one in (deploy.litert(), deploy.onnx()):
    found = deploy.parity(network, one.open(one.write(network)), x, simulated)
    assert found["reference/runtime"].count == 0
    assert found["simulation/runtime"].max_steps <= 1  # at ties of interpolated values
    assert found["simulation/runtime"].count <= 0.001 * found["simulation/runtime"].total


def test_float_layers_are_refused_where_they_must_not_be():
  variables, x, grids, _ = camera(SETTINGS[1])
  with pytest.raises(UserError) as caught:
    deploy.lift(Camera().apply, variables, x[:1], grids, islands=False)
  assert "the layer 'Conv_0/kernel:hard_swish' would stay float" in str(caught.value)
  with pytest.raises(UserError, match="would stay float: the kernel 'plain/params/kernel' has no grid"):
    fn = lambda v, x: nn.Dense(5).apply(v["last"], nn.relu(nn.Dense(8).apply(v["plain"], x)))
    flat = normal(2, (4, 6))
    v = {"plain": variables["params"]["plain"], "last": variables["params"]["Dense_0"]}
    v = {name: {"params": held} for name, held in v.items()} | {"plain": initial(nn.Dense(8), flat, seed=2)}
    model = quantize(fn, {"plain/*": "float", "*": "w8a8"})
    deploy.lift(fn, v, flat, model.grids(*model.calibrate(v, [flat]), v, flat), islands=False)


def test_a_file_uses_integer_kernels_of_functions_where_they_give_the_same_codes():
  variables, x, grids, _ = camera("w8a8")
  operators = [op.code for op in plan.planned(deploy.lift(Camera().apply, variables, x[:1], grids)).operators]
  assert operators[operators.index("GELU") - 1] == "CONV_2D"  # codes in
  assert operators[operators.index("SOFTMAX") - 1] == "FULLY_CONNECTED"  # the grid is that of its integer kernel
  assert operators[operators.index("HARD_SWISH") - 1] == "DEQUANTIZE"  # a few codes of its kernel are the next ones


def test_values_of_codes_are_computed_once_for_all_float_readers():
  variables, x, grids, _ = camera("w8a8")
  network = deploy.lift(Camera().apply, variables, x[:1], grids)
  read = [layer.inputs[0] for layer in network.layers if isinstance(layer, ir.Dequantize)]
  assert len(read) == len(set(read))


def test_a_quantized_function_has_several_inputs_and_outputs():
  v = {"a": normal(0, (6, 5)), "b": normal(1, (4, 5)), "c": normal(2, (5, 3))}

  def fn(v, x, y):
    hidden = nn.relu(x @ v["a"] + y @ v["b"])
    return {"result": hidden @ v["c"], "hidden": jnp.concatenate([hidden, nn.sigmoid(hidden)], 1)}

  inputs = normal(3, (30, 6)), normal(4, (30, 4))
  model = quantize(fn, "w8a8")
  state = model.calibrate(v, [inputs])
  network = deploy.lift(fn, v, inputs, model.grids(*state, v, *inputs))
  assert [network.tensors[name].dtype for name in network.inputs.values()] == ["int8", "int8"]
  simulated = model.apply(*state, v, *inputs)[0]
  for one in (deploy.litert(), deploy.onnx()):
    found = deploy.parity(network, one.open(one.write(network)), inputs, simulated)
    assert {pair: mismatch.count for pair, mismatch in found.items()} == dict.fromkeys(found, 0)


def test_an_output_that_a_relu_reads_too_keeps_its_negative_numbers():
  v = {"a": normal(0, (6, 5))}

  def fn(v, x):
    y = x @ v["a"]
    return {"before": y, "behind": nn.relu(y)}

  x = normal(1, (30, 6))
  network = deploy.lift(fn, v, x)
  for name, expected in fn(v, x).items():
    np.testing.assert_allclose(reference.run(network, np.asarray(x))[name], expected, rtol=1e-5, atol=1e-5)
  model = quantize(fn, "w8a8")
  state = model.calibrate(v, [x])
  network = deploy.lift(fn, v, x, model.grids(*state, v, x))
  simulated = model.apply(*state, v, x)[0]
  found = deploy.parity(network, deploy.litert().open(deploy.litert().write(network)), x, simulated)
  assert {pair: mismatch.count for pair, mismatch in found.items()} == dict.fromkeys(found, 0)


def test_numbers_of_float_outputs_that_differ_are_counted():
  network = deploy.lift(lambda v, x: x @ v, normal(0, (6, 5)), normal(1, (4, 6)))
  x = np.asarray(normal(2, (4, 6)))
  simulated = np.array(x @ normal(0, (6, 5)))
  simulated[1, 2] += 1.0
  found = deploy.parity(network, deploy.litert().open(deploy.litert().write(network)), x, simulated)
  assert {pair: mismatch.count for pair, mismatch in found.items()} == {
    "reference/runtime": 0,
    "simulation/reference": 1,
    "simulation/runtime": 1,
  }


def test_a_float_value_with_another_reader_stays_in_the_file():
  ends = {name: ir.Tensor(name, (None, 4)) for name in ("values", "gelu", "sum")}
  codes = {name: ir.Tensor(name, (None, 4), "int8", ir.grid(0.05)) for name in ("x", "rounded")}
  layers = (
    ir.Dequantize("first", ("x",), "values"),
    ir.Activation("function", ("values",), "gelu", "gelu"),
    ir.Quantize("last", ("gelu",), "rounded"),
    ir.Add("add", ("gelu", "values"), "sum"),
  )
  network = ir.check(ir.Network(layers, {**ends, **codes}, {"x": "x"}, {"rounded": "rounded", "sum": "sum"}))
  x = np.arange(-60, 60, dtype=np.int8).reshape(30, 4)
  found = deploy.parity(network, deploy.litert().open(deploy.litert().write(network)), x)
  assert found["reference/runtime"].count == 0
