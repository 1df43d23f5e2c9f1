"""What an .onnx file holds, which kernels it gets, and files that are foreign or hostile."""

import collections
import dataclasses
import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from leanax import deploy
from leanax.core.errors import UserError
from leanax.deploy import ir, reference
from tests.deploy import nets

FORMAT = deploy.onnx()
LAYERS = {
  "dense": lambda maker: (maker.flatten(), maker.dense(9, relu=True)),
  "conv": lambda maker: maker.conv(5, (3, 2), (2, 1), relu=True),
  "conv padded": lambda maker: maker.conv(5, padding=((0, 2), (1, 1)), dilation=(2, 1), bias=False),
  "grouped": lambda maker: (maker.conv(8), maker.conv(6, groups=2, relu=True)),
  "depthwise": lambda maker: maker.conv(6, groups=3, strides=(2, 2)),
  "max pool": lambda maker: maker.pool(ir.MaxPool, (3, 3), (2, 2), ((1, 1), (1, 1))),
  "average pool": lambda maker: maker.pool(ir.AvgPool, (3, 3), (1, 2), ((1, 1), (1, 1))),
  "mean": lambda maker: maker.mean(),
  "mean kept": lambda maker: maker.mean(keep_dims=True),
  "relu": lambda maker: maker.relu(),
  "add": lambda maker: (maker.conv(3), maker.add("input", relu=True)),
}


def on_powers_of_two(maker):
  """Moves every scale to a power of two, so that exact ties are common; a bias stays on the grid of its layer."""
  for name, tensor in maker.tensors.items():
    if tensor.dtype == "int8":
      scale = np.asarray(2.0 ** np.round(np.log2(tensor.scale)), np.float32)
      maker.tensors[name] = tensor._replace(grid=dataclasses.replace(tensor.grid, scale=scale))
  for layer in maker.layers:
    if getattr(layer, "bias", None):
      grid = ir.bias_grid(maker.tensors[layer.inputs[0]], maker.tensors[layer.kernel])
      maker.tensors[layer.bias] = maker.tensors[layer.bias]._replace(grid=grid)


@pytest.mark.parametrize("kind", LAYERS)
def test_int8_layers_have_the_codes_of_the_reference(kind):
  for seed in range(4):
    maker = nets.Maker(seed, (6, 7, 3), True)
    LAYERS[kind](maker)
    if seed >= 2:
      on_powers_of_two(maker)
    network, codes = maker.network(), maker.images(40)
    expected = reference.run(network, codes, "onnxruntime")
    assert deploy.compare(FORMAT.open(FORMAT.write(network)).codes(codes), expected).count == 0


def test_quantization_inside_a_network():
  network = nets.lenet(0).network()
  ends = ir.float_ends(network)
  x = np.random.default_rng(0).normal(size=(20, 12, 12, 1)).astype(np.float32)
  expected = reference.run(ends, x, "onnxruntime")
  np.testing.assert_array_equal(FORMAT.open(FORMAT.write(ends)).run(x), expected)


def bottoms(maker):
  """The network with the zero points of ReLUs at the bottom of the range, as training has them."""
  network = maker.network()
  for layer in network.layers:
    if getattr(layer, "relu", False):
      made = network.tensors[layer.output]
      for name, tensor in network.tensors.items():
        if tensor.grid is not None and ir.same_grid(tensor.grid, made.grid):
          network.tensors[name] = tensor._replace(grid=ir.grid(made.scale, -128))
  return network


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet"])
def test_the_runtime_has_integer_kernels_for_all_of_it(name, tmp_path):
  options = onnxruntime.SessionOptions()
  options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
  options.log_severity_level = 4
  content = FORMAT.write(bottoms(getattr(nets, name)(0)))
  onnxruntime.InferenceSession(content, options)
  found = collections.Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
  assert set(found) <= {
    *("QLinearConv", "QLinearAdd", "QGemm", "QLinearGlobalAveragePool"),
    *("MaxPool", "NhwcMaxPool", "Transpose", "Reshape", "Flatten"),
  }


@pytest.mark.parametrize("quantized", [True, False])
def test_a_convolutional_network_has_one_transpose(quantized):
  model = onnx.load_from_string(FORMAT.write(nets.resnet(0, quantized).network()))
  assert sum(node.op_type == "Transpose" for node in model.graph.node) == 1
  model = onnx.load_from_string(FORMAT.write(nets.mlp(0, quantized=quantized).network()))
  assert all(node.op_type != "Transpose" for node in model.graph.node)


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_what_a_file_says_of_itself(activations):
  network = nets.lenet(0).network(deploy.Preprocessing((0.5,), (0.2,)))
  model = onnx.load_from_string(deploy.onnx(activations).write(network))
  onnx.checker.check_model(model, full_check=True)
  assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 13)]
  assert (model.ir_version, model.producer_name) == (7, "leanax")
  (given,), (made,) = model.graph.input, model.graph.output
  assert (given.name, made.name) == ("input", "output")
  kind = {"uint8": onnx.TensorProto.UINT8, "int8": onnx.TensorProto.INT8}[activations]
  assert given.type.tensor_type.elem_type == made.type.tensor_type.elem_type == kind
  sizes = given.type.tensor_type.shape.dim
  assert sizes[0].dim_param == "N" and [size.dim_value for size in sizes[1:]] == [12, 12, 1]
  held = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
  tensor = network.tensors[network.input]
  offset = 128 if activations == "uint8" else 0
  grid = {"scale": float(tensor.scale), "zero_point": tensor.zero_point + offset}
  assert held["leanax.grids"]["inputs"] == {"input": grid}
  assert held["leanax"]["preprocessing"]["mean"] == [0.5]
  types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
  assert types["conv0/kernel"] == onnx.TensorProto.INT8 and types["conv0/bias"] == onnx.TensorProto.INT32


def test_int8_activations_differ_by_one_step_at_most():
  for name in ("mlp", "lenet", "resnet"):
    maker = getattr(nets, name)(1)
    network, codes = maker.network(), maker.images(50)
    made = deploy.onnx("int8")
    found = deploy.compare(made.open(made.write(network)).codes(codes), reference.run(network, codes, "onnxruntime"))
    assert found.max_steps <= 1 and found.count <= 0.02 * found.total
  with pytest.raises(UserError, match="unknown type of activations 'int4'"):
    deploy.onnx("int4")


def foreign(nodes, given, made, held=()):
  """The bytes of a model of another program: ends are (name, type, shape)."""
  ends = [[onnx.helper.make_tensor_value_info(*end) for end in side] for side in (given, made)]
  graph = onnx.helper.make_graph(nodes, "foreign", *ends, list(held))
  return onnx.helper.make_model(
    graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)]
  ).SerializeToString()


FLOAT, BYTE = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8
node = onnx.helper.make_node


def test_foreign_files_run():
  x = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
  content = foreign([node("Relu", ["a"], ["b"])], [("a", FLOAT, ["batch", 2, 3])], [("b", FLOAT, [None, 2, 3])])
  np.testing.assert_array_equal(FORMAT.open(content).run(x - np.float32(5)), np.maximum(x - np.float32(5), 0))
  cast = node("Cast", ["a"], ["b"], to=FLOAT)
  content = foreign([cast], [("a", BYTE, [1, 2, 3])], [("b", FLOAT, [1, 2, 3])])
  runner = FORMAT.open(content)
  np.testing.assert_array_equal(runner.run(x, batch=1), x.astype(np.float32))
  assert runner.latency(runs=2, warm_up=0).wall_min > 0
  with pytest.raises(UserError, match="onnxruntime refuses .*Got invalid dimensions"):
    runner.run(x)
  with pytest.raises(UserError, match="it takes uint8 as it is"):
    runner.run(x.astype(np.float32))


def test_foreign_files_may_have_several_inputs_and_outputs():
  nodes, ends = [node("Add", ["a", "c"], ["b"]), node("Abs", ["a"], ["d"])], [(k, FLOAT, ["N", 4]) for k in "acbd"]
  runner = FORMAT.open(foreign(nodes, ends[:2], ends[2:]))
  a, c = np.arange(12, dtype=np.float32).reshape(3, 4) - 5, np.ones((3, 4), np.float32)
  found = runner.run({"a": a, "c": c}, batch=2)
  np.testing.assert_array_equal(found["b"], a + c)
  np.testing.assert_array_equal(found["d"], np.abs(a))
  assert runner.latency(runs=2, warm_up=0).runs == 2


LOOP = node("Loop", ["n", "go", "a"], ["b"], body=onnx.helper.make_graph([], "body", [], []))
OUTSIDE = onnx.TensorProto(name="w", dims=[3], data_type=FLOAT, data_location=onnx.TensorProto.EXTERNAL)
OUTSIDE.external_data.add(key="location", value="/etc/passwd")
HUGE = onnx.TensorProto(name="w", dims=[2**40], data_type=FLOAT)
FILL = node("ConstantOfShape", ["w"], ["big"])
SIZES = onnx.numpy_helper.from_array(np.array([2**20, 2**20], np.int64), "w")
A, B = ("a", FLOAT, ["N", 4]), ("b", FLOAT, ["N", 4])
IMAGE_A, IMAGE_B = ("a", FLOAT, ["N", 1, 4, 4]), ("b", FLOAT, ["N", 1, None, None])
RELU = node("Relu", ["a"], ["b"])
REFUSED = {
  "another type": (
    foreign([node("Cast", ["a"], ["b"], to=FLOAT)], [("a", onnx.TensorProto.DOUBLE, ["N", 4])], [B]),
    "of type tensor.double.; expected float32 or uint8",
  ),
  "open sizes": (foreign([RELU], [("a", FLOAT, ["N", "T"])], [("b", FLOAT, ["N", "T"])]), "the batch alone"),
  "an unknown operator": (foreign([node("Foo", ["a"], ["b"])], [A], [B]), "onnxruntime refuses"),
  "a loop": (foreign([LOOP], [A], [B]), "operator Loop"),
  "other files": (foreign([node("Add", ["a", "w"], ["b"])], [A], [B], [OUTSIDE]), "lies in another file"),
  "a huge constant": (foreign([node("Add", ["a", "w"], ["b"])], [A], [B], [HUGE]), "has the shape"),
  "a huge tensor": (foreign([FILL, node("Add", ["a", "big"], ["b"])], [A], [B], [SIZES]), "1.1e.12 elements"),
  "strides of 0": (
    foreign([node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], strides=[0, 0])], [IMAGE_A], [IMAGE_B]),
    "'strides'",
  ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_refused(name):
  content, part = REFUSED[name]
  with pytest.raises(UserError, match=part) as caught:
    FORMAT.open(content)
  assert "\n" not in str(caught.value)


def test_a_missing_extra_is_one_sentence(monkeypatch):
  content = FORMAT.write(nets.mlp(0).network())
  for missing in ("onnx", "onnxruntime"):
    with monkeypatch.context() as patch:
      patch.setitem(sys.modules, missing, None)
      for call in (FORMAT.check, FORMAT.write, lambda network: FORMAT.open(content)):
        with pytest.raises(UserError, match=r"pip install leanax\[onnx\]"):
          call(nets.mlp(0).network())


def test_the_weights_of_a_float_layer_among_integers_stay_floats():
  """The runtime would round them to int8: those of a layer between DequantizeLinear and QuantizeLinear."""
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(3, 4)).astype(np.float32)
  cases = {
    "dense": (ir.Dense("l", ("r",), "f", "w", None), (None, 3), kernel),
    "rows": (ir.Dense("l", ("r",), "f", "w", None), (None, 5, 3), kernel),
    "product": (ir.MatMul("l", ("r", "w"), "f"), (None, 5, 3), kernel),
    "conv": (ir.Conv2D("l", ("r",), "f", "w", None), (None, 5, 5, 3), kernel[None, None]),
  }
  for name, (layer, shape, weights) in cases.items():
    made = (*shape[:-1], 4)
    tensors = {
      "x": ir.Tensor("x", shape, "int8", ir.grid(np.float32(0.02), 3)),
      "r": ir.Tensor("r", shape),
      "w": ir.Tensor("w", weights.shape, data=weights),
      "f": ir.Tensor("f", made),
      "y": ir.Tensor("y", made, "int8", ir.grid(np.float32(0.05), -4)),
    }
    layers = (ir.Dequantize("d", ("x",), "r"), layer, ir.Quantize("q", ("f",), "y"))
    network = ir.check(ir.Network(layers, tensors, {"x": "x"}, {"y": "y"}))
    codes = rng.integers(-128, 128, (50, *shape[1:])).astype(np.int8)
    found = deploy.compare(
      FORMAT.open(FORMAT.write(network)).codes(codes), reference.run(network, codes, "onnxruntime")
    )
    assert found.count == 0, (name, found)
