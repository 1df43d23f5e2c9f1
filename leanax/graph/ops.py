"""The view of a visitor: operations, their operands, and the equations that are recognised as one kind of operation."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core as jex

from leanax.graph.channels import Moves
from leanax.graph.layout import View

KINDS = ("dot", "conv", "ragged_dot", "bias", "add", "max_pool", "avg_pool", "mean", "output", "other", "tensor")

# Equations that declare the device axes which a value varies over, and change nothing else.
VARIES = frozenset(("pvary", "pcast"))
# Equations that hand on the numbers of their first operand, perhaps at another place or in another float type.
MOVES = VARIES | {"reshape", "transpose", "squeeze", "expand_dims", "copy", "copy_p", "stop_gradient"}
MOVES |= {"sharding_constraint", "reshard"}
# The same for parameters, where it does not matter that only a part goes on, or a part several times.
LEAF_MOVES = MOVES | {
  "slice",
  "dynamic_slice",
  "rev",
  "broadcast_in_dim",
  "reduce_precision",
  "split",
  "unstack",
  "name",
}


# Equations of which each entry of the result depends on the entries of the operands at the same place.
_ARITHMETIC = "add add_any sub mul div rem max min pow integer_pow neg abs sign floor ceil round clamp select_n square"
_FUNCTIONS = (
  "exp exp2 log log1p expm1 sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh logistic rsqrt sqrt cbrt "
  "erf erf_inv erfc lgamma digamma"
)
_LOGIC = "lt le gt ge eq ne and or not xor is_finite shift_left shift_right_logical shift_right_arithmetic nextafter"
_TYPES = "convert_element_type bitcast_convert_type reduce_precision stop_gradient copy copy_p name pvary pcast"
ELEMENTWISE = frozenset(" ".join((_ARITHMETIC, _FUNCTIONS, _LOGIC, _TYPES)).split(" "))


class Operand(NamedTuple):
  """An input of an operation, or an output.

  Attributes:
    leaf: the leaf of the variables that it comes from, through casts, transposes, reshapes and slices, or through
      arithmetic in which it is the sole leaf (of several, the largest); None for a value that depends on the inputs.
    tensor: the name of the activation; None for parameters and constants.
    exact: the leaf's own numbers, and not arithmetic on them.
    view: where these lie in the leaf; None if that is not known, or for arithmetic.
  """

  leaf: str | None
  tensor: str | None
  shape: tuple[int, ...]
  dtype: Any
  exact: bool = False
  view: View | None = None


@dataclass(frozen=True, eq=False)
class Op:
  """One operation of the traced function.

  Attributes:
    name: unique; the leaf's path for an operation that consumes one (`Dense_0/kernel`, `#1` appended on the second
      use), otherwise from the producers (`Dense_1/kernel:add`).
    kind: one of `KINDS`; "tensor" hands an activation on as it is, to visitors that ask for it (`graph.rewrite`).
    params: the equation's parameters (of the sum, for a mean or an average pool).
    site: for a bias the name of the dot or convolution that it is added to, otherwise the operation's own name.
    channel_axis: output-channel axis of the kernel operand as it stands in this equation; None without a kernel, or
      with several such axes.
    channel_axes: every axis of the kernel operand that is not summed over: its output channels, and the axes of a
      batch of kernels.
    kernel_index: which input is the kernel.
    moves: for a bias how values in the axes of its site's kernel operand get to the axes of the sum (`graph.channels`).
    bias: for a bias the function from the leaf to its values in those axes, behind the axes of scans; None where an
      index known only when it runs takes them out of the leaf.
    branches: the branches that it stands in, from the outside: (index of the cond's node, which branch).
    macs: multiply-accumulates of all its runs (a scan's body runs `repeats` times), at the traced batch size.
    frozen: why it cannot be replaced ("inside a while loop"), or None.
    nodes: places of its equations in `Graph.flat`.
  """

  name: str
  kind: str
  inputs: tuple[Operand, ...]
  outputs: tuple[Operand, ...]
  params: Mapping[str, Any]
  site: str | None
  channel_axis: int | None = None
  channel_axes: tuple[int, ...] = ()
  kernel_index: int | None = None
  macs: int = 0
  moves: Moves = ()
  bias: Callable[[Any], Any] | None = field(default=None, repr=False)
  branches: tuple[tuple[int, int], ...] = ()
  repeats: int = 1
  frozen: str | None = None
  nodes: tuple[int, ...] = ()
  call: Callable[..., tuple[Any, ...]] | None = field(default=None, repr=False)

  def bind(self, *inputs: Any, **changed: Any) -> tuple[Any, ...]:
    """Returns the original operation on these inputs; a dot's or convolution's parameters may be changed."""
    return inputs if self.call is None else self.call(*inputs, **changed)


def kernel_axes(
  primitive: str, params: Mapping[str, Any], kernel: int, ndim: int
) -> tuple[int | None, tuple[int, ...]]:
  """Returns `Op.channel_axis` and `Op.channel_axes` of a dot's or a convolution's kernel operand."""
  if primitive == "dot_general":
    contract, batch = params["dimension_numbers"]
    kept = tuple(axis for axis in range(ndim) if axis not in contract[kernel])
    free = [axis for axis in kept if axis not in batch[kernel]]
    return free[0] if len(free) == 1 else None, kept
  if primitive != "conv_general_dilated":
    return None, ()
  spec = params["dimension_numbers"]
  if kernel == 1:
    return spec.rhs_spec[0], (spec.rhs_spec[0],)
  return None, (spec.lhs_spec[0],)  # a constant image under a kernel that depends on the inputs: one scale an image


def dot_macs(params: Mapping[str, Any], lhs: Any, rhs: Any) -> int:
  """Returns the products of a dot: every axis of the left operand times the right operand's free axes."""
  (_, contract), (_, batch) = params["dimension_numbers"]
  return math.prod(lhs.shape) * math.prod(n for axis, n in enumerate(rhs.shape) if axis not in (*contract, *batch))


def ragged_macs(params: Mapping[str, Any], lhs: Any, rhs: Any) -> int:
  """Returns the products of a ragged dot: each row, or each summed position, meets one group."""
  numbers = params["ragged_dot_dimension_numbers"]
  (_, contract), (_, batch) = numbers.dot_dimension_numbers
  gone = (*contract, *batch, *numbers.rhs_group_dimensions)
  return math.prod(lhs.shape) * math.prod(n for axis, n in enumerate(rhs.shape) if axis not in gone)


def conv_macs(params: Mapping[str, Any], lhs: Any, rhs: Any, out: Any) -> int:
  """Returns the products of a convolution, with padding; a transposed one spreads its kernel from every position."""
  spec = params["dimension_numbers"]
  spatial = math.prod(rhs.shape[axis] for axis in spec.rhs_spec[2:])
  if any(d != 1 for d in params["lhs_dilation"]):
    return math.prod(lhs.shape) * spatial * rhs.shape[spec.rhs_spec[0]] // params["feature_group_count"]
  return math.prod(out.shape) * spatial * rhs.shape[spec.rhs_spec[1]]


def is_float(aval: Any) -> bool:
  """Returns whether a value is of a real floating-point type (keys and tokens are not)."""
  dtype = getattr(aval, "dtype", None)
  return isinstance(dtype, np.dtype) and (dtype.kind == "f" or dtype.name.startswith(("bfloat", "float")))


def moves(primitive: str, source: Any, result: Any) -> bool:
  """Returns whether an equation only hands its operand's numbers on, for the identity of an activation."""
  if primitive in MOVES:
    return True
  if primitive == "convert_element_type":
    return is_float(source) and is_float(result)
  return primitive == "broadcast_in_dim" and math.prod(source.shape) == math.prod(result.shape)


def leaf_moves(primitive: str, source: Any, result: Any) -> bool:
  """The same for a parameter."""
  return primitive in LEAF_MOVES or (primitive == "convert_element_type" and is_float(source) and is_float(result))


def is_spatial_mean(params: Mapping[str, Any], shape: tuple[int, ...], divisor: jex.Literal | None) -> bool:
  """Returns whether a sum over these axes, so divided, is the mean over the positions of each example's channel."""
  axes = tuple(params["axes"])
  if divisor is None or 0 in axes or not axes or len(axes) != len(shape) - 2:
    return False
  channels_first = len(shape) == 4 and axes == (2, 3)
  if len(shape) - 1 in axes and not channels_first:
    return False
  return float(divisor.val) == math.prod(shape[axis] for axis in axes)
