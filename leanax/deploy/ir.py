"""The typed layer IR: what a compressed model is to a writer, a reference interpreter or a person reading it.

About a dozen layers, each plain data. Images are NHWC, convolution kernels HWIO and dense kernels (in, out), as in
JAX; a writer transposes them as its format wishes. The batch is the first axis of every activation, written None and
taken as 1 in a file.

An integer tensor holds codes q of the values scale * (q - zero_point). Weights are symmetric (zero point 0) with a
scale per output channel; activations are affine with one scale; a bias is int32 at input scale times weight scale
(arXiv:1712.05877, section 2).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy.preprocessing import Preprocessing
from quant.grid import Grid

Padding = tuple[tuple[int, int], tuple[int, int]]
Pair = tuple[int, int]
QMIN, QMAX = -128, 127


class Tensor(NamedTuple):
  """An activation (data None) or a constant.

  Attributes:
    name: unique within its network.
    shape: sizes; None for the batch.
    dtype: "float32", "int8" or "int32".
    grid: of an integer tensor's codes, its arrays numpy's (`grid`); None for a float tensor. Codes are signed, of a
      kernel with fewer bits stored as int8; a bias's have 32 bits.
    data: a constant's values or codes, of `dtype`.
  """

  name: str
  shape: tuple[int | None, ...]
  dtype: str = "float32"
  grid: Grid | None = None
  data: np.ndarray | None = None

  @property
  def scale(self) -> np.ndarray:
    """The grid's scale, float32: (), or (channels,) along `axis`."""
    return np.asarray(on_grid(self).scale, np.float32)

  @property
  def zero_point(self) -> int:
    """The code of 0.0 of an activation; constants have 0."""
    return int(np.asarray(on_grid(self).zero_point).item())

  @property
  def axis(self) -> int | None:
    """The axis of a vector of scales; None for one scale."""
    axis = on_grid(self).axis
    assert axis is None or isinstance(axis, int), self.name
    return axis


def on_grid(tensor: Tensor) -> Grid:
  """Returns the grid of a tensor that must have one."""
  assert tensor.grid is not None, tensor.name
  return tensor.grid


def grid(scale: Any, zero_point: int = 0, *, bits: int = 8, narrow: bool = False, axis: int | None = None) -> Grid:
  """Returns a grid of signed codes that holds numpy arrays.

  Args:
    scale: (), or (channels,) along `axis`.
    zero_point: one for all channels.
    bits: width of the codes.
    narrow: whether the lowest code is left out.
    axis: of a vector of scales.
  """
  numbers: tuple[Any, Any] = np.asarray(scale, np.float32), np.array(zero_point, np.int32)
  return Grid(*numbers, bits=bits, signed=True, narrow=narrow, axis=axis)


@dataclass(frozen=True)
class Layer:
  """What all layers have: a name, the names of the activations it reads and the one it makes."""

  name: str
  inputs: tuple[str, ...]
  output: str

  def constants(self) -> tuple[str, ...]:
    """Names of the constant tensors it reads."""
    return ()


@dataclass(frozen=True)
class Conv2D(Layer):
  """Convolution, (N, H, W, I) by (h, w, I / groups, O). Depthwise is groups == I; ReLU is fused."""

  kernel: str
  bias: str | None
  strides: Pair = (1, 1)
  padding: Padding = ((0, 0), (0, 0))
  dilation: Pair = (1, 1)
  groups: int = 1
  relu: bool = False

  def constants(self) -> tuple[str, ...]:
    return (self.kernel,) if self.bias is None else (self.kernel, self.bias)


@dataclass(frozen=True)
class Dense(Layer):
  """Matrix product, (N, I) by (I, O), with fused ReLU."""

  kernel: str
  bias: str | None
  relu: bool = False

  def constants(self) -> tuple[str, ...]:
    return (self.kernel,) if self.bias is None else (self.kernel, self.bias)


@dataclass(frozen=True)
class Add(Layer):
  """Sum of two activations of one shape, with fused ReLU."""

  relu: bool = False


@dataclass(frozen=True)
class MaxPool(Layer):
  """Largest value of each window; what lies outside the image never wins. Input and output share one grid."""

  window: Pair
  strides: Pair
  padding: Padding = ((0, 0), (0, 0))


@dataclass(frozen=True)
class AvgPool(Layer):
  """Mean of each window, zeros outside the image counted; input and output have grids of their own."""

  window: Pair
  strides: Pair
  padding: Padding = ((0, 0), (0, 0))


@dataclass(frozen=True)
class Mean(Layer):
  """Mean over height and width: (N, H, W, C) to (N, C), or to (N, 1, 1, C)."""

  keep_dims: bool = False


@dataclass(frozen=True)
class Reshape(Layer):
  """The same values in the output's shape; the batch stays first. Input and output share one grid."""


@dataclass(frozen=True)
class Relu(Layer):
  """The larger of x and 0 where it could not be fused, because its input is read by others too.

  An int8 one reads codes, so its result is rounded once more than in a simulation that rounds only what it makes.
  """


@dataclass(frozen=True)
class Quantize(Layer):
  """To an int8 grid, from float or from another grid."""


@dataclass(frozen=True)
class Dequantize(Layer):
  """From an int8 grid to float."""


class Network(NamedTuple):
  """Layers in an order in which each one's inputs are ready.

  Attributes:
    layers: the layers.
    tensors: every tensor by name, activations and constants.
    input: name of the activation that the caller feeds.
    output: name of the result.
    preprocessing: how raw images become the input; None when the network takes them as they are.
  """

  layers: tuple[Layer, ...]
  tensors: dict[str, Tensor]
  input: str
  output: str
  preprocessing: Preprocessing | None = None

  @property
  def quantized(self) -> bool:
    """Whether its layers run on integers."""
    return any(tensor.dtype == "int8" for tensor in self.tensors.values())

  def __str__(self) -> str:
    return "\n".join([f"input {describe(self.tensors[self.input])}", *(self._line(layer) for layer in self.layers)])

  def _line(self, layer: Layer) -> str:
    made = describe(self.tensors[layer.output])
    relu = " relu" if getattr(layer, "relu", False) else ""
    held = sum(values(self.tensors[name]).size for name in layer.constants())
    return f"{type(layer).__name__}{relu} {layer.name}: {', '.join(layer.inputs)} -> {made}, {held} parameters"


def describe(tensor: Tensor) -> str:
  """A tensor in one line: name, type, shape and grid."""
  shape = "x".join("N" if size is None else str(size) for size in tensor.shape)
  numbers = ""
  if tensor.grid is not None and not tensor.scale.ndim:
    numbers = f" scale {float(tensor.scale):.6g} zero {tensor.zero_point}"
  return f"{tensor.name} {tensor.dtype}[{shape}]{numbers}"


def bias_grid(source: Tensor, kernel: Tensor) -> Grid:
  """Returns the grid of a bias: int32 codes at input scale times weight scale."""
  return grid(source.scale * kernel.scale, bits=32, axis=None if kernel.axis is None else 0)


def same_grid(a: Grid | None, b: Grid | None) -> bool:
  """Returns whether two activations hold the same values at the same codes."""
  if a is None or b is None:
    return a is b
  return bool(np.array_equal(a.scale, b.scale) and np.array_equal(a.zero_point, b.zero_point))


def values(constant: Tensor) -> np.ndarray:
  """The data of a tensor that must have some."""
  assert constant.data is not None, constant.name
  return constant.data


def quantize(x: np.ndarray, tensor: Tensor) -> np.ndarray:
  """Float values to a tensor's int8 codes: clip(round_half_even(x * (1 / scale)) + zero_point, -128, 127), in float32.

  The reciprocal is rounded first, as XLA and the runtimes do it; a quotient would fall on another code now and then.

  Raises:
    UserError: the values hold NaN.
  """
  if np.isnan(x).any():
    raise UserError("codes of NaN: the array holds NaN, which is no number on a grid")
  steps = np.rint(np.asarray(x, np.float32) * (np.float32(1) / tensor.scale))
  return np.clip(steps + np.float32(tensor.zero_point), QMIN, QMAX).astype(np.int8)


def dequantize(codes: np.ndarray, tensor: Tensor) -> np.ndarray:
  """A tensor's codes to float32 values: scale * (code - zero_point)."""
  return tensor.scale * (codes.astype(np.int32) - tensor.zero_point).astype(np.float32)


def same_padding(size: int, window: int, stride: int, dilation: int = 1) -> Pair:
  """The (before, after) zeros that TensorFlow's and JAX's SAME puts around one axis."""
  reach = (window - 1) * dilation + 1
  total = max((-(-size // stride) - 1) * stride + reach - size, 0)
  return total // 2, total - total // 2


def window_out(size: int, window: int, stride: int, padding: Pair, dilation: int = 1) -> int:
  """How many windows fit along one axis."""
  return (size + sum(padding) - (window - 1) * dilation - 1) // stride + 1


def float_ends(network: Network) -> Network:
  """An int8 network that takes and gives float32: a Quantize layer before it and a Dequantize layer behind it."""
  if not network.quantized:
    return network
  source, result = network.tensors[network.input], network.tensors[network.output]
  given = Tensor(f"{source.name}:float", source.shape)
  taken = Tensor(f"{result.name}:float", result.shape)
  first = Quantize("quantize", (given.name,), source.name)
  last = Dequantize("dequantize", (result.name,), taken.name)
  tensors = {given.name: given, **network.tensors, taken.name: taken}
  return network._replace(layers=(first, *network.layers, last), tensors=tensors, input=given.name, output=taken.name)


def check(network: Network) -> Network:
  """The network itself, once its names, order and grids are as this file says.

  Raises:
    UserError: a tensor is missing or read too early, made twice, or stands on a grid that its layer cannot have.
  """
  ready = {network.input} | {name for name, tensor in network.tensors.items() if tensor.data is not None}
  for layer in network.layers:
    for name in (*layer.inputs, *layer.constants()):
      if name not in ready:
        raise UserError(f"layer {layer.name!r} reads {name!r}, which no layer before it makes")
    if layer.output in ready or layer.output not in network.tensors:
      reason = "was made before" if layer.output in ready else "is no tensor"
      raise UserError(f"layer {layer.name!r} makes {layer.output!r}, which {reason}")
    _check_grids(layer, network.tensors)
    ready.add(layer.output)
  if network.output not in ready:
    raise UserError(f"the network's output {network.output!r} is made by no layer")
  return network


def _check_grids(layer: Layer, tensors: dict[str, Tensor]) -> None:
  made, read = tensors[layer.output], [tensors[name] for name in layer.inputs]
  if not isinstance(layer, Quantize | Dequantize) and any(tensor.dtype != made.dtype for tensor in read):
    raise UserError(
      f"layer {layer.name!r} reads {read[0].dtype} and makes {made.dtype}; only quantize layers may change the type"
    )
  if isinstance(layer, MaxPool | Reshape) and not same_grid(made.grid, read[0].grid):
    raise UserError(f"layer {layer.name!r} must have one grid for its input and its output")
  for name in layer.constants():
    constant = tensors[name]
    zeros = 0 if constant.grid is None else np.asarray(constant.grid.zero_point)
    if np.any(zeros):
      raise UserError(f"constant {name!r} has zero point {zeros}; weights must be symmetric, with zero point 0")
    if constant.dtype == "int8" and constant.data is not None and constant.data.min(initial=0) < -QMAX:
      raise UserError(f"weights {name!r} hold the code -128; the runtime wants the narrow range -127..127")
