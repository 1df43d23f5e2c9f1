"""The layers of the IR, each plain data, and the sizes of their windows."""

from dataclasses import dataclass

Padding = tuple[tuple[int, int], tuple[int, int]]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Layer:
  """Any layer: its name, the names of the activations it reads, and the name of the one it makes."""

  name: str
  inputs: tuple[str, ...]
  output: str

  def constants(self) -> tuple[str, ...]:
    """Returns the names of the constant tensors it reads."""
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
  """Matrix product along the last axis, (N, ..., I) by (I, O), with fused ReLU."""

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


def same_padding(size: int, window: int, stride: int, dilation: int = 1) -> Pair:
  """Returns the (before, after) zeros that TensorFlow's and JAX's SAME puts around one axis."""
  reach = (window - 1) * dilation + 1
  total = max((-(-size // stride) - 1) * stride + reach - size, 0)
  return total // 2, total - total // 2


def window_out(size: int, window: int, stride: int, padding: Pair, dilation: int = 1) -> int:
  """Returns the number of windows along one axis."""
  return (size + sum(padding) - (window - 1) * dilation - 1) // stride + 1
