"""Every layer of the IR in onnxruntime against numpy: floats in both layouts of an image, and codes.

Whole networks go through the battery of file formats (tests/conformance/test_file_formats.py).
"""

import math
from typing import Any, NamedTuple

import numpy as np
import pytest

from leanax import deploy
from leanax.deploy import ir
from leanax.deploy.ir.checks import MOVES

FORMAT = deploy.onnx()
RNG = np.random.default_rng(0)
ERF = np.vectorize(math.erf)


def tensor(name, shape, dtype="float32", data=None, grid=None):
  return ir.Tensor(name, shape, dtype, grid, None if data is None else np.asarray(data, dtype))


def behind(layers, tensors, shape, *, convolved):
  """A network of the layers, which read "x" of a shape (N, ...) and make "y"; `convolved` makes x in a convolution."""
  held = {"x": tensor("x", (None, *shape)), **tensors}
  first = ()
  if convolved:
    held["given"] = tensor("given", (None, *shape))
    held["one"] = tensor("one", (1, 1, shape[-1], shape[-1]), data=np.eye(shape[-1])[None, None])
    first = (ir.Conv2D("conv", ("given",), "x", "one", None),)
  given = "given" if convolved else "x"
  return ir.check(ir.Network((*first, *layers), held, {given: given}, {"y": "y"}))


def run(layers, tensors, x, convolved=False, made=FORMAT):
  network = behind(layers, tensors, x.shape[1:], convolved=convolved)
  made.check(network)
  runner = made.open(made.write(network))
  whole = runner.codes(x)
  np.testing.assert_allclose(runner.codes(x[:1]), whole[:1], rtol=1e-6)
  return whole


def relu6(x):
  return np.clip(x, 0, 6)


FUNCTIONS = {
  "relu": lambda x: np.maximum(x, 0),
  "relu6": relu6,
  "relu_n1": lambda x: np.clip(x, -1, 1),
  "clip": lambda x: np.clip(x, -0.5, 2.0),
  "hard_sigmoid": lambda x: relu6(x + 3) / 6,
  "hard_swish": lambda x: x * relu6(x + 3) / 6,
  "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
  "silu": lambda x: x / (1 + np.exp(-x)),
  "gelu": lambda x: x * (1 + ERF(x / np.sqrt(2))) / 2,
  "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
  "tanh": np.tanh,
  "leaky_relu": lambda x: np.where(x >= 0, x, 0.3 * x),
  "elu": lambda x: np.where(x >= 0, x, np.expm1(x)),
  "exp": np.exp,
  "abs": np.abs,
  "neg": np.negative,
  "square": np.square,
  "softplus": lambda x: np.log1p(np.exp(x)),
  "floor": np.floor,
  "ceil": np.ceil,
  "round": np.rint,
  "sign": np.sign,
  "sin": np.sin,
  "cos": np.cos,
  "erf": ERF,
}
POSITIVE = {
  "log": np.log,
  "log1p": np.log1p,
  "sqrt": np.sqrt,
  "rsqrt": lambda x: 1 / np.sqrt(x),
  "reciprocal": lambda x: 1 / x,
}
PARAMETERS = {"clip": (-0.5, 2.0), "leaky_relu": (0.3,)}


@pytest.mark.parametrize("name", [*FUNCTIONS, *POSITIVE])
def test_functions(name):
  x = RNG.normal(size=(3, 4, 5, 6)).astype(np.float32) * 3
  x = np.abs(x) + 0.1 if name in POSITIVE else x
  layer = ir.Activation("f", ("x",), "y", name, PARAMETERS.get(name, ()))
  expected = {**FUNCTIONS, **POSITIVE}[name](x.astype(np.float64))
  made = {"y": tensor("y", (None, 4, 5, 6))}
  for convolved in (False, True):
    np.testing.assert_allclose(run([layer], made, x, convolved), expected, rtol=2e-5, atol=2e-6)


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


ROW = RNG.normal(size=3).astype(np.float32) + 3
SLOPE = np.array([0.1, -0.5, 0.3], np.float32)
IMAGE = RNG.normal(size=(1, 4, 5, 3)).astype(np.float32)
KERNEL, BIAS = IMAGE[0, 0].T.copy(), np.ones(5, np.float32)
PADS = ((0, 0), (1, 2), (0, 3), (1, 1))
X, Y = ("x",), "y"


class Case(NamedTuple):
  """What layers from "x" (N, 4, 5, 3) to "y" compute, their constants, and the shape of "m" between two of them."""

  function: Any
  layers: list[ir.Layer]
  constants: dict = {}  # noqa: RUF012
  middle: tuple = (4, 5, 3)


def pair(operation, a, b, output=Y):
  return ir.Binary(output, (a, b), output, operation)


def compared(operation, f):
  layers = [ir.Compare("c", ("x", "image"), "bool", operation), ir.Cast("l", ("bool",), Y)]
  return Case(lambda x: f(x, IMAGE), layers, {"image": IMAGE})


def reduced(f, axes, keep):
  return Case(lambda x: f(x, axis=axes, keepdims=keep), [ir.Reduce("l", X, Y, f.__name__, axes, keep)])


def windowed(x):
  return x[:, :4, :4].reshape(-1, 2, 2, 2, 2, 3)


IMAGES = {
  "prelu": Case(lambda x: np.where(x >= 0, x, SLOPE * x), [ir.Prelu("l", X, Y, "slope")], {"slope": SLOPE}),
  "add": Case(lambda x: x + x, [ir.Add("l", ("x", "x"), Y)]),
  "relu": Case(lambda x: np.maximum(x, 0), [ir.Relu("l", X, Y)]),
  "row": Case(lambda x: (ROW - x) / ROW, [pair("sub", "row", "x", "m"), pair("div", "m", "row")], {"row": ROW}),
  "image": Case(
    lambda x: np.maximum(x * IMAGE, x), [pair("mul", "x", "image", "m"), pair("max", "m", "x")], {"image": IMAGE}
  ),
  "number": Case(lambda x: np.minimum(x, 0.5), [pair("min", "x", "half")], {"half": np.float32(0.5)}),
  "power": Case(lambda x: x**2, [pair("pow", "x", "two")], {"two": np.float32(2)}),
  "gate": Case(
    lambda x: x * x.mean((1, 2), keepdims=True), [ir.Mean("l", X, "m", True), pair("mul", "m", "x")], {}, (1, 1, 3)
  ),
  "softmax": Case(softmax, [ir.Softmax("l", X, Y)]),
  "log softmax": Case(lambda x: np.log(softmax(x)), [ir.Softmax("l", X, Y, log=True)]),
  "mean": Case(lambda x: x.mean((1, 2)), [ir.Mean("l", X, Y)]),
  "mean kept": Case(lambda x: x.mean((1, 2), keepdims=True), [ir.Mean("l", X, Y, True)]),
  "flatten": Case(lambda x: x.reshape(-1, 60), [ir.Reshape("l", X, Y)]),
  "flatten channels": Case(
    lambda x: x.mean((1, 2)), [ir.Mean("m", X, "m", True), ir.Reshape("l", ("m",), Y)], {}, (1, 1, 3)
  ),
  "channels first": Case(lambda x: x.transpose(0, 3, 1, 2), [ir.Transpose("l", X, Y, (0, 3, 1, 2))]),
  "transpose": Case(lambda x: x.transpose(0, 2, 1, 3), [ir.Transpose("l", X, Y, (0, 2, 1, 3))]),
  "slice": Case(lambda x: x[:, 1:3, ::2, 1:], [ir.Slice("l", X, Y, (0, 1, 0, 1), (None, 3, 5, 3), (1, 1, 2, 1))]),
  "flip": Case(lambda x: x[:, :, ::-1], [ir.Slice("l", X, Y, (0, 0, 4, 0), (None, 4, None, 3), (1, 1, -1, 1))]),
  "pad": Case(lambda x: np.pad(x, PADS, constant_values=-2.5), [ir.Pad("l", X, Y, PADS, "constant", -2.5)]),
  "reflect": Case(lambda x: np.pad(x, PADS, "reflect"), [ir.Pad("l", X, Y, PADS, "reflect")]),
  "symmetric": Case(lambda x: np.pad(x, PADS, "symmetric"), [ir.Pad("l", X, Y, PADS, "symmetric")]),
  "broadcast": Case(
    lambda x: np.broadcast_to(x.mean((1, 2), keepdims=True), x.shape),
    [ir.Mean("l", X, "m", True), ir.Broadcast("b", ("m",), Y)],
    {},
    (1, 1, 3),
  ),
  "nearest": Case(lambda x: x.repeat(2, 1).repeat(3, 2), [ir.Resize("l", X, Y, "nearest")]),
  "nearest, fewer": Case(lambda x: x[:, [0, 2, 3]][:, :, [0, 2, 4]], [ir.Resize("l", X, Y, "nearest")]),
  "select": Case(
    lambda x: np.where(x > IMAGE, x, ROW),
    [ir.Compare("c", ("x", "image"), "bool", "gt"), ir.Select("l", ("bool", "x", "row"), Y)],
    {"image": IMAGE, "row": ROW},
  ),
  "lt": compared("lt", np.less),
  "le": compared("le", np.less_equal),
  "ge": compared("ge", np.greater_equal),
  "eq": compared("eq", np.equal),
  "ne": compared("ne", np.not_equal),
  "gather": Case(
    lambda x: x[:, :, [4, 0, 0]], [ir.Gather("l", ("x", "at"), Y, 2)], {"at": np.array([4, 0, 0], np.int32)}
  ),
  "embedding": Case(
    lambda x: IMAGE[0, :, 0][np.argmax(x, 1)],
    [ir.ArgMax("i", X, "index", 1), ir.Gather("l", ("rows", "index"), Y, 0)],
    {"rows": IMAGE[0, :, 0]},
  ),
  "max pool": Case(lambda x: windowed(x).max((2, 4)), [ir.MaxPool("l", X, Y, (2, 2), (2, 2))]),
  "average pool": Case(lambda x: windowed(x).mean((2, 4)), [ir.AvgPool("l", X, Y, (2, 2), (2, 2))]),
  "dense of rows": Case(
    lambda x: np.maximum(x @ KERNEL + 1, 0),
    [ir.Dense("l", X, Y, "kernel", "bias", True)],
    {"kernel": KERNEL, "bias": BIAS},
  ),
  "product": Case(lambda x: x @ x.transpose(0, 1, 3, 2), [ir.MatMul("l", ("x", "x"), Y, True)]),
  "constant product": Case(lambda x: x @ KERNEL, [ir.MatMul("l", ("x", "kernel"), Y)], {"kernel": KERNEL}),
  **{
    f"concat {k}": Case(lambda x, k=k: np.concatenate([x, x], k), [ir.Concat("l", ("x", "x"), Y, k)])
    for k in (1, 2, 3, -1)
  },
  **{
    f"{f.__name__} {axes} {keep}": reduced(f, axes, keep)
    for f in (np.sum, np.mean, np.max, np.min, np.prod)
    for axes, keep in (((1, 2), False), ((3,), True), ((2,), False), ((1, 2, 3), False))
  },
  **{
    f"argmax {k}": Case(lambda x, k=k: x.argmax(k), [ir.ArgMax("i", X, "index", k), ir.Cast("l", ("index",), Y)])
    for k in (1, 2, 3, -1)
  },
}


@pytest.mark.parametrize("name", IMAGES)
def test_layers_of_images(name):
  case, x = IMAGES[name], RNG.normal(size=(3, 4, 5, 3)).astype(np.float32)
  x[0] = IMAGE[0]  # some equal numbers
  expected = case.function(x)
  shape = expected.shape[1:]
  tensors = {key: tensor(key, value.shape, value.dtype.name, value) for key, value in case.constants.items()}
  tensors |= {"y": tensor("y", (None, *shape)), "m": tensor("m", (None, *case.middle))}
  index = shape[:2] if name == "embedding" else shape
  tensors |= {"bool": tensor("bool", (None, *shape), "bool"), "index": tensor("index", (None, *index), "int32")}
  for convolved in (False, True):
    made = run(case.layers, tensors, x, convolved)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-6)


def on_grid(name, values, shape, like=None):
  """A tensor on a grid that the values fill, or on that of another."""
  low, high = min(values.min(), 0), max(values.max(), 0)
  scale = np.float32((high - low) / 255)
  grid = ir.grid(scale, int(np.clip(np.rint(-128 - low / scale), -128, 127))) if like is None else like
  return ir.Tensor(name, (None, *shape), "int8", grid)


PLAIN = {
  name: case
  for name, case in IMAGES.items()
  if len(case.layers) == 1 and (not case.constants or name == "prelu") and not name.startswith("log")
}
STEPS = {"softmax": 1.2}  # onnxruntime's integer kernel looks powers up in a table and rounds their quotient again


@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize("name", PLAIN)
def test_codes_are_the_nearest_ones(name, activations):
  case = PLAIN[name]
  codes = RNG.integers(-128, 128, (3, 4, 5, 3)).astype(np.int8)
  given = on_grid("x", np.array([-1.0, 2.0]), (4, 5, 3))
  expected = case.function(ir.dequantize(codes, given).astype(np.float64))
  y = on_grid("y", expected, expected.shape[1:], given.grid if isinstance(case.layers[0], MOVES) else None)
  held = {key: tensor(key, value.shape, value.dtype.name, value) for key, value in case.constants.items()}
  network = ir.check(ir.Network(tuple(case.layers), {"x": given, "y": y, **held}, {"x": "x"}, {"y": "y"}))
  made = deploy.onnx(activations)
  runner = made.open(made.write(network))
  assert (runner.input.dtype, runner.output.dtype) == ("int8", "int8")
  assert ir.same_grid(runner.input.grid, given.grid) and ir.same_grid(runner.output.grid, y.grid)
  lowest, highest = (ir.dequantize(np.array(code), y) for code in (-128, 127))
  clipped = np.clip(expected, lowest, highest)
  steps = STEPS.get(name, 0.501)
  assert np.abs(ir.dequantize(runner.codes(codes), y) - clipped).max() <= y.scale * steps
