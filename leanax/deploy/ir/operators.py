"""Layers of the IR without weights, or with constants among their inputs: functions, pairs of tensors, shapes."""

from dataclasses import dataclass

from leanax.deploy.ir.layers import Conv2D, Dense, Layer


@dataclass(frozen=True)
class Activation(Layer):
  """A function of each number, by its name in `deploy.functions`, with its parameters (a slope, two limits)."""

  function: str
  parameters: tuple[float, ...] = ()


@dataclass(frozen=True)
class Prelu(Layer):
  """x where x >= 0 and slope * x below, with one slope per channel (the last axis): a constant tensor (C,)."""

  slope: str

  def constants(self) -> tuple[str, ...]:
    return (self.slope,)


OPERATIONS = ("add", "sub", "mul", "div", "max", "min", "pow")


@dataclass(frozen=True)
class Binary(Layer):
  """One of `OPERATIONS` of two tensors, activations or constants, that broadcast against each other as in numpy."""

  operation: str


@dataclass(frozen=True)
class Compare(Layer):
  """Whether lt, le, gt, ge, eq or ne holds between two tensors that broadcast; the output is bool."""

  operation: str


@dataclass(frozen=True)
class Select(Layer):
  """The second tensor where the first one (bool) holds and the third elsewhere; they broadcast."""


@dataclass(frozen=True)
class Softmax(Layer):
  """exp(x) over its sum along an axis, or the logarithm of that."""

  log: bool = False
  axis: int = -1


REDUCTIONS = ("sum", "mean", "max", "min", "prod", "any", "all")


@dataclass(frozen=True)
class Reduce(Layer):
  """One of `REDUCTIONS` over axes, which go or stay with length 1, "any" and "all" of truth values.

  The batch is never among them.
  """

  operation: str
  axes: tuple[int, ...]
  keep_dims: bool = False


@dataclass(frozen=True)
class ArgMax(Layer):
  """The int32 index of the largest number along an axis, the first of equal ones."""

  axis: int


@dataclass(frozen=True)
class ArgMin(Layer):
  """The int32 index of the least number along an axis, the first of equal ones."""

  axis: int


@dataclass(frozen=True)
class CumSum(Layer):
  """The sum of each entry and those before it along an axis, or those behind it where it is `reverse`."""

  axis: int
  reverse: bool = False


@dataclass(frozen=True)
class Transpose(Layer):
  """The axes in another order; the batch stays first."""

  permutation: tuple[int, ...]


@dataclass(frozen=True)
class Concat(Layer):
  """Tensors one after the other along an axis; a constant has length 1 along the batch, and stands in each example."""

  axis: int


@dataclass(frozen=True)
class Slice(Layer):
  """The part [start, stop) of each axis in steps; the batch is whole: start 0, stop None, step 1."""

  starts: tuple[int, ...]
  stops: tuple[int | None, ...]
  strides: tuple[int, ...]


@dataclass(frozen=True)
class Pad(Layer):
  """More entries at the ends of each axis: "constant" ones of `value`, or a "reflect" or "symmetric" mirror image."""

  padding: tuple[tuple[int, int], ...]
  mode: str = "constant"
  value: float = 0.0


@dataclass(frozen=True)
class Broadcast(Layer):
  """Axes of length 1 spread to the output's shape, of as many axes."""


@dataclass(frozen=True)
class Resize(Layer):
  """Images (N, H, W, C) at the output's height and width, "nearest" or "bilinear", with half-pixel centres."""

  method: str


@dataclass(frozen=True)
class TransposedConv2D(Layer):
  """Transposed convolution, (N, H, W, I) by (h, w, I, O): each input pixel adds its kernel, `strides` apart.

  Of the whole result, ((H - 1) * stride + h) rows, `cut` are left out before and behind; columns alike.
  """

  kernel: str
  bias: str | None
  strides: tuple[int, int] = (1, 1)
  cut: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
  relu: bool = False

  def constants(self) -> tuple[str, ...]:
    return (self.kernel,) if self.bias is None else (self.kernel, self.bias)


WEIGHTED = Conv2D | Dense | TransposedConv2D  # layers with a kernel, and a bias per output channel


@dataclass(frozen=True)
class MatMul(Layer):
  """Batched matrix products (..., I, K) by (..., K, J), or by (..., J, K) where the second is `transposed`."""

  transposed: bool = False


@dataclass(frozen=True)
class Gather(Layer):
  """Entries of the first tensor along an axis at the indices in the second (int32).

  Of the two one is constant: a table, whose axis is 0 (an embedding), or the indices (length,). Indices beyond the axis
  are no layer's matter: the runtime refuses them.
  """

  axis: int


@dataclass(frozen=True)
class Cast(Layer):
  """The same numbers in the output's type."""
