"""Dense layers, convolutions and products of matrices in numpy."""

import itertools

import numpy as np

from leanax.deploy import ir
from leanax.deploy.reference.context import Context, codes_of, int32, ratio, wide
from leanax.deploy.requantize import scaled

BLOCK = 2**21  # numbers of the inputs of convolutions that are copied at once: 16 MiB


def _affine(layer: ir.Conv2D | ir.Dense | ir.TransposedConv2D, total: np.ndarray, context: Context) -> np.ndarray:
  """Returns a sum of products (..., channels) after bias, requantization and ReLU."""
  made, given, kernel = (context.tensors[name] for name in (layer.output, layer.inputs[0], layer.kernel))
  bias = None if layer.bias is None else context.tensors[layer.bias].data
  if made.dtype == "float32":
    total = total if bias is None else total + bias
    return (np.maximum(total, 0) if layer.relu else total).astype(np.float32)
  total = int32(int32(total) + (0 if bias is None else bias.astype(np.int64)))
  kind = np.float32 if context.rounding == "float32" else np.float64
  real = ratio(given.scale.astype(kind) * kernel.scale.astype(kind), made, context.rounding)
  rounding = context.dense if isinstance(layer, ir.Dense) else context.rounding
  return codes_of(scaled(total, real, rounding), made, layer.relu)


def _kernel(layer: ir.Conv2D | ir.Dense | ir.TransposedConv2D, context: Context) -> np.ndarray:
  """Returns the kernel's steps of an integer layer, and its values of a float one, as float64."""
  kernel = context.tensors[layer.kernel]
  if kernel.grid is not None and context.tensors[layer.output].dtype == "float32":
    return ir.dequantize(ir.values(kernel), kernel).astype(np.float64)
  return ir.values(kernel).astype(np.float64)


def _dense(layer: ir.Dense, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  return _affine(layer, wide(inputs[0], context.tensors[layer.inputs[0]]) @ _kernel(layer, context), context)


def _conv(layer: ir.Conv2D, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  kernel = _kernel(layer, context)
  x = wide(inputs[0], context.tensors[layer.inputs[0]])
  return _affine(layer, (_by_groups if layer.groups > 1 else _by_patches)(layer, x, kernel), context)


def _by_groups(layer: ir.Conv2D, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
  """Returns the sums of products of a grouped convolution, one position of the window after the other."""
  height, width, depth, channels = kernel.shape
  total = None
  for row, column, part in windows(x, (height, width), layer.strides, layer.padding, layer.dilation, 0.0):
    grouped = part.reshape(*part.shape[:3], layer.groups, depth)
    weights = kernel[row, column].reshape(depth, layer.groups, channels // layer.groups)
    term = np.einsum("nhwgd,dgc->nhwgc", grouped, weights).reshape(*part.shape[:3], channels)
    total = term if total is None else total + term
  assert total is not None
  return total


def _by_patches(layer: ir.Conv2D, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
  """Returns the sums of products of a convolution: one matrix product for each block of what its windows see."""
  x = np.pad(x, ((0, 0), *layer.padding, (0, 0)))
  reach = [(size - 1) * step + 1 for size, step in zip(kernel.shape[:2], layer.dilation, strict=True)]
  (down, right), (below, beside) = layer.strides, layer.dilation
  seen = np.lib.stride_tricks.sliding_window_view(x, reach, (1, 2))[:, ::down, ::right, :, ::below, ::beside]
  seen = seen.transpose(0, 1, 2, 4, 5, 3)  # (N, H', W', h, w, I)
  matrix = kernel.reshape(-1, kernel.shape[3])
  total = np.empty((*seen.shape[:3], matrix.shape[1]))
  rows = max(BLOCK // max(seen.shape[2] * len(matrix), 1), 1)
  images = max(rows // max(seen.shape[1], 1), 1)
  for first, top in itertools.product(range(0, len(seen), images), range(0, seen.shape[1], rows)):
    block = np.s_[first : first + images, top : top + rows]
    total[block] = (seen[block].reshape(-1, len(matrix)) @ matrix).reshape(total[block].shape)
  return total


def _transposed_conv(layer: ir.TransposedConv2D, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  kernel = _kernel(layer, context)
  x = wide(inputs[0], context.tensors[layer.inputs[0]])
  size = [(x.shape[1 + k] - 1) * layer.strides[k] + kernel.shape[k] for k in (0, 1)]
  total = np.zeros((len(x), *size, kernel.shape[3]))
  for row, column in np.ndindex(*kernel.shape[:2]):  # each input pixel adds its kernel
    stop = [start + (x.shape[1 + k] - 1) * layer.strides[k] + 1 for k, start in enumerate((row, column))]
    total[:, row : stop[0] : layer.strides[0], column : stop[1] : layer.strides[1]] += x @ kernel[row, column]
  (top, bottom), (left, right) = layer.cut
  return _affine(layer, total[:, top : size[0] - bottom, left : size[1] - right], context)


def _matmul(layer: ir.MatMul, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  made, (left, right) = context.tensors[layer.output], (context.tensors[name] for name in layer.inputs)
  a, b = wide(inputs[0], left), wide(inputs[1], right)
  total = a @ (b.swapaxes(-1, -2) if layer.transposed else b)
  if made.dtype == "float32":
    return total.astype(np.float32)
  kind = np.float32 if context.rounding == "float32" else np.float64
  real = ratio(left.scale.astype(kind) * right.scale.astype(kind), made, context.rounding)
  return codes_of(scaled(int32(total), real, context.rounding), made)


def windows(x, window, strides, padding, dilation, fill):
  """Returns each position (row, column) of the window with what all windows see there: (N, H', W', C)."""
  x = np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=fill)
  rows, columns = (ir.window_out(x.shape[1 + k], window[k], strides[k], (0, 0), dilation[k]) for k in (0, 1))
  for row in range(window[0]):
    for column in range(window[1]):
      top, left = row * dilation[0], column * dilation[1]
      stop = top + (rows - 1) * strides[0] + 1, left + (columns - 1) * strides[1] + 1
      yield row, column, x[:, top : stop[0] : strides[0], left : stop[1] : strides[1]]


TABLE = {
  ir.Dense: _dense,
  ir.Conv2D: _conv,
  ir.TransposedConv2D: _transposed_conv,
  ir.MatMul: _matmul,
}
