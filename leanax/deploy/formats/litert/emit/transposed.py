"""Transposed convolutions as LiteRT operators that follow the batch.

TRANSPOSE_CONV takes the shape of its result, batch included, as a constant, and is two or three times slower where that
is computed at run time. Here a convolution computes, at each place,
a block of `strides` rows and columns of the result in its channels, and the blocks are then unfolded: the same products
in convolution kernels, in floats and in integers.
"""

from typing import NamedTuple

import numpy as np

from leanax.deploy import ir
from leanax.deploy.formats.litert.emit.operators import Plan, Written, keep
from leanax.deploy.formats.litert.emit.weighted import conv


class _Side(NamedTuple):
  """Rows or columns: blocks that are computed from `first` to before `stop`, and the part of them that is the result.

  Attributes:
    taps: pixels that a block reads.
    first: the first block of the whole result that is computed.
    stop: the block behind the last one.
    start: the result's first row in the first block.
    size: the result's rows.
    given: the input's rows.
  """

  taps: int
  first: int
  stop: int
  start: int
  size: int
  given: int

  def padding(self) -> ir.Pair:
    return self.taps - 1 - self.first, self.stop - self.given


def _side(window: int, stride: int, cut: int, size: int, given: int) -> _Side:
  # Row f = i * stride + j of the whole result is row f % stride of block f // stride = i + j // stride.
  taps = -(-window // stride)
  first = min(cut // stride, taps - 1)
  stop = max((cut + size - 1) // stride + 1, given)
  return _Side(taps, first, stop, cut - first * stride, size, given)


def transposed_conv(plan: Plan, layer: ir.TransposedConv2D, tensors: dict[str, ir.Tensor]) -> None:
  """Adds a convolution that makes blocks of the result, their unfolding, and what cuts the result out of it."""
  made, source, kernel = (tensors[name] for name in (layer.output, layer.inputs[0], layer.kernel))
  weights, strides = ir.values(kernel), layer.strides
  args = [(weights.shape[k], strides[k], layer.cut[k][0], made.shape[1 + k], source.shape[1 + k]) for k in (0, 1)]
  sides = [_side(*(int(one or 0) for one in each)) for each in args]
  # The kernel of blocks: results (row in its block, column in its block, channel) are output channels.
  count, channels = strides[0] * strides[1], weights.shape[3]
  wide = np.zeros((sides[0].taps, sides[1].taps, weights.shape[2], *strides, channels), weights.dtype)
  for place in np.ndindex(*weights.shape[:2]):
    tap, inside = zip(*(divmod(place[k], strides[k]) for k in (0, 1)), strict=True)
    wide[sides[0].taps - 1 - tap[0], sides[1].taps - 1 - tap[1], :, inside[0], inside[1]] = weights[place]
  held = {layer.kernel: _repeated(kernel, wide.reshape(*wide.shape[:3], -1), count)}
  if layer.bias is not None:
    bias = tensors[layer.bias]
    held[layer.bias] = _repeated(bias, np.tile(ir.values(bias), count), count)
  # The convolution; then blocks become rows and columns; then what lies outside the result is left out.
  blocks = tuple(side.stop - side.first for side in sides)
  whole = tuple(block * stride for block, stride in zip(blocks, strides, strict=True))
  cut = whole != made.shape[1:3]
  folded = keep(plan, made._replace(name=f"{layer.name}:blocks", shape=(None, *blocks, count * channels)))
  around = (sides[0].padding(), sides[1].padding())
  own = ir.Conv2D(layer.name, layer.inputs, folded, layer.kernel, layer.bias, padding=around, relu=layer.relu)
  conv(plan, own, {**tensors, **held})
  rows = keep(plan, made._replace(name=f"{layer.name}:rows", shape=(None, *whole, channels))) if cut else made.name
  _unfold(plan, layer, plan.tensors[folded], plan.tensors[rows])
  if cut:
    _cut(plan, layer, rows, [(side.start, side.start + side.size) for side in sides])


def _repeated(tensor: ir.Tensor, data: np.ndarray, count: int) -> ir.Tensor:
  """Returns weights whose output channels are repeated, with a scale for each."""
  grid = tensor.grid
  if grid is not None and grid.axis is not None:
    grid = ir.grid(np.tile(tensor.scale, count), bits=grid.bits, narrow=grid.narrow, axis=data.ndim - 1)
  return tensor._replace(shape=data.shape, data=data, grid=grid)


def _unfold(plan: Plan, layer: ir.TransposedConv2D, folded: ir.Tensor, rows: ir.Tensor) -> None:
  high, wide = layer.strides
  if high == wide:
    fields = {"BlockSize": high}
    plan.operators.append(Written("DEPTH_TO_SPACE", (folded.name,), rows.name, "DepthToSpaceOptions", fields))
    return
  given = folded.name
  if high > 1:
    _, *blocks, _ = folded.shape
    apart = (None, *blocks, high, wide, rows.shape[3])
    name = keep(plan, folded._replace(name=f"{layer.name}:apart", shape=apart))
    _reshape(plan, layer, given, plan.tensors[name])
    order = np.array([0, 1, 3, 2, 4, 5], np.int32)
    turned = folded._replace(name=f"{layer.name}:turned", shape=tuple(apart[axis] for axis in order))
    named = keep(plan, ir.Tensor(f"{layer.name}:order", order.shape, "int32", data=order))
    given = keep(plan, turned)
    plan.operators.append(Written("TRANSPOSE", (name, named), given, version=6))
  _reshape(plan, layer, given, rows)


def _reshape(plan: Plan, layer: ir.TransposedConv2D, given: str, made: ir.Tensor) -> None:
  shape = np.array([-1, *made.shape[1:]], np.int32)
  named = keep(plan, ir.Tensor(f"{layer.name}:shape{len(shape)}", shape.shape, "int32", data=shape))
  plan.operators.append(Written("RESHAPE", (given, named), made.name, "ReshapeOptions", {"NewShape": shape}))


def _cut(plan: Plan, layer: ir.TransposedConv2D, rows: str, parts: list[tuple[int, int]]) -> None:
  """Adds the slice of rows and columns; batch and channels are whole, whatever their sizes."""
  bounds = np.array([(0, 0), *parts, (0, 0)], np.int32).T
  values = {"begin": bounds[0], "end": bounds[1], "steps": np.ones(4, np.int32)}
  named = [
    keep(plan, ir.Tensor(f"{layer.name}:{key}", (4,), "int32", data=np.ascontiguousarray(value)))
    for key, value in values.items()
  ]
  fields = {"BeginMask": 0b1001, "EndMask": 0b1001}
  plan.operators.append(Written("STRIDED_SLICE", (rows, *named), layer.output, "StridedSliceOptions", fields))


TABLE = {ir.TransposedConv2D: transposed_conv}
