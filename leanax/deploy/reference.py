"""An interpreter of the layer IR in plain numpy: the judge between what training simulates and what a runtime does.

It shares no arithmetic with the simulation or with the writers. Integers follow arXiv:1712.05877: int8 codes less
their zero points, int32 accumulators and biases, then a requantization whose rounding is chosen (deploy/requantize.py
says what each is):

- "float32" follows XNNPACK in every layer: one float32 product for convolutions, dense layers, means and average
  pools, and XNNPACK's 21-bit fixed point for sums;
- "single" and "double" follow LiteRT's plain kernels: 31-bit fixed point everywhere, sums at 20 extra bits;
- "litert" is what the plain kernels of ai-edge-litert 2.3.0 were found to do: "double", but dense layers round once,
  ties away from zero.

Products are summed in float64, where each is exact (a sum stays far below 2^53), and the total is cut to int32 as an
accumulator would be. Float networks run in float32 with float64 sums.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from leanax.core.errors import UserError, unknown
from leanax.deploy import ir
from leanax.deploy.requantize import litert_mean, litert_sum, scaled, xnnpack_sum

MODES = {  # the rounding of dense layers, and of all others
  "float32": ("float32", "float32"),
  "single": ("single", "single"),
  "double": ("double", "double"),
  "litert": ("away", "double"),
}


class _Context(NamedTuple):
  tensors: dict[str, ir.Tensor]
  dense: str  # the rounding of dense layers
  rounding: str  # that of all others


def run(
  network: ir.Network, images: np.ndarray, requantize: str = "float32", batch: int = 256, keep: bool = False
) -> Any:
  """Runs a network on inputs.

  Args:
    network: any network of the IR, float or int8.
    images: (N, ...) inputs; for an int8 network int8 codes, or floats, which are quantized on the input's grid.
    requantize: "float32", "single", "double" or "litert"; float networks ignore it.
    batch: how many inputs at a time (memory).
    keep: return every activation by name instead of the output.

  Returns:
    (N, ...) int8 codes of an int8 network, floats of a float one; with `keep` a dict of all activations.

  Raises:
    UserError: inputs of the wrong shape, or an unknown rounding.
  """
  if requantize not in MODES:
    raise unknown("requantization", requantize, MODES)
  source = network.tensors[network.input]
  if images.shape[1:] != source.shape[1:]:
    raise UserError(
      f"the network takes inputs of shape (N, {', '.join(map(str, source.shape[1:]))}), not {images.shape}"
    )
  if source.dtype == "int8" and images.dtype != np.int8:
    if np.isnan(images).any():
      raise UserError("the network was given inputs that hold NaN, which has no code")
    images = quantize(images, source)
  context = _Context(network.tensors, *MODES[requantize])
  parts: list[dict[str, np.ndarray]] = []
  for start in range(0, max(len(images), 1), batch):
    values = {network.input: images[start : start + batch]}
    for layer in network.layers:
      values[layer.output] = _LAYERS[type(layer)](layer, [values[name] for name in layer.inputs], context)
    parts.append(values if keep else {network.output: values[network.output]})
  merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  return merged if keep else merged[network.output]


def step(
  layer: ir.Layer, inputs: list[np.ndarray], tensors: dict[str, ir.Tensor], requantize: str = "float32"
) -> np.ndarray:
  """Runs one layer on given inputs."""
  return _LAYERS[type(layer)](layer, inputs, _Context(tensors, *MODES[requantize]))


def quantize(x: np.ndarray, tensor: ir.Tensor) -> np.ndarray:
  """Returns the codes clip(round_half_even(x * (1 / s)) + z, -128, 127), reciprocal and product in float32."""
  inverse = np.reciprocal(tensor.scale.astype(np.float32))
  steps = np.round(np.multiply(x.astype(np.float32), inverse)).astype(np.float64)
  return _codes(steps, tensor)


def _codes(steps: np.ndarray, tensor: ir.Tensor, relu: bool = False) -> np.ndarray:
  """Returns the codes of whole steps around 0.0; ReLU is a clip at the zero point."""
  low = max(-128, tensor.zero_point) if relu else -128
  return np.minimum(np.maximum(steps + tensor.zero_point, low), 127).astype(np.int8)


def _steps(codes: np.ndarray, tensor: ir.Tensor) -> np.ndarray:
  """Codes less their zero point, in int64."""
  return codes.astype(np.int64) - tensor.zero_point


def _int32(total: np.ndarray) -> np.ndarray:
  """Returns a sum cut to 32 bits, as an int32 accumulator wraps, in int64."""
  return total.astype(np.int64).astype(np.int32).astype(np.int64)


def _ratio(above: Any, below: ir.Tensor, rounding: str) -> np.ndarray:
  """Returns a multiplier s / s_y in the precision that the rounding's runtime computes it in."""
  kind = np.float32 if rounding == "float32" else np.float64
  return np.asarray(above, kind) / below.scale.astype(kind)


def _affine(layer: ir.Conv2D | ir.Dense, total: np.ndarray, context: _Context) -> np.ndarray:
  """Returns a sum of products (..., channels) after bias, requantization and ReLU."""
  made, given, kernel = (context.tensors[name] for name in (layer.output, layer.inputs[0], layer.kernel))
  bias = None if layer.bias is None else context.tensors[layer.bias].data
  if made.dtype == "float32":
    total = total if bias is None else total + bias
    return (np.maximum(total, 0) if layer.relu else total).astype(np.float32)
  total = _int32(_int32(total) + (0 if bias is None else bias.astype(np.int64)))
  kind = np.float32 if context.rounding == "float32" else np.float64
  real = _ratio(given.scale.astype(kind) * kernel.scale.astype(kind), made, context.rounding)
  rounding = context.dense if isinstance(layer, ir.Dense) else context.rounding
  return _codes(scaled(total, real, rounding), made, layer.relu)


def _wide(codes: np.ndarray, tensor: ir.Tensor) -> np.ndarray:
  """Values or steps as float64, for exact sums of products."""
  return codes.astype(np.float64) if tensor.dtype == "float32" else _steps(codes, tensor).astype(np.float64)


def _dense(layer: ir.Dense, inputs: list[np.ndarray], context: _Context) -> np.ndarray:
  kernel = ir.values(context.tensors[layer.kernel])
  return _affine(layer, _wide(inputs[0], context.tensors[layer.inputs[0]]) @ kernel.astype(np.float64), context)


def _conv(layer: ir.Conv2D, inputs: list[np.ndarray], context: _Context) -> np.ndarray:
  kernel = ir.values(context.tensors[layer.kernel])
  x = _wide(inputs[0], context.tensors[layer.inputs[0]])
  height, width, depth, channels = kernel.shape
  total = None
  for row, column, part in _windows(x, (height, width), layer.strides, layer.padding, layer.dilation, 0.0):
    grouped = part.reshape(*part.shape[:3], layer.groups, depth)
    weights = kernel[row, column].reshape(depth, layer.groups, channels // layer.groups).astype(np.float64)
    if layer.groups == 1:
      term = part @ weights[:, 0]
    else:
      term = np.einsum("nhwgd,dgc->nhwgc", grouped, weights).reshape(*part.shape[:3], channels)
    total = term if total is None else total + term
  assert total is not None
  return _affine(layer, total, context)


def _windows(x, window, strides, padding, dilation, fill):
  """Returns each position (row, column) of the window with what all windows see there: (N, H', W', C)."""
  x = np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=fill)
  rows, columns = (ir.window_out(x.shape[1 + k], window[k], strides[k], (0, 0), dilation[k]) for k in (0, 1))
  for row in range(window[0]):
    for column in range(window[1]):
      top, left = row * dilation[0], column * dilation[1]
      stop = top + (rows - 1) * strides[0] + 1, left + (columns - 1) * strides[1] + 1
      yield row, column, x[:, top : stop[0] : strides[0], left : stop[1] : strides[1]]


def _max_pool(layer: ir.MaxPool, inputs: list[np.ndarray], context: _Context) -> np.ndarray:
  lowest = -128 if inputs[0].dtype == np.int8 else -np.inf
  parts = _windows(inputs[0], layer.window, layer.strides, layer.padding, (1, 1), lowest)
  return np.maximum.reduce([part for _, _, part in parts])


def _average(total: np.ndarray, count: int, layer: ir.Layer, context: _Context) -> np.ndarray:
  """Returns a sum of steps or values over `count`, on the grid of the layer's output."""
  made, given = context.tensors[layer.output], context.tensors[layer.inputs[0]]
  if made.dtype == "float32":
    return (total / count).astype(np.float32)
  total = _int32(total)
  kind = np.float32 if context.rounding == "float32" else np.float64
  share = given.scale.astype(kind) * np.float32(1 / count).astype(kind)
  if isinstance(layer, ir.AvgPool):  # a convolution with weight 1 at scale 1 / count, rounded as one
    return _codes(scaled(total, _ratio(share, made, context.rounding), context.rounding), made)
  if context.rounding == "float32":  # here XNNPACK adds the zero point before it rounds: a tie goes to the even code
    moved = total.astype(np.float32) * _ratio(share, made, "float32") + np.float32(made.zero_point)
    return _codes(np.rint(moved).astype(np.int64) - made.zero_point, made)
  real = float(_ratio(given.scale, made, context.rounding))
  return _codes(litert_mean(total, count, real, context.rounding), made)


def _avg_pool(layer: ir.AvgPool, inputs: list[np.ndarray], context: _Context) -> np.ndarray:
  x = _wide(inputs[0], context.tensors[layer.inputs[0]])
  total = sum(part for _, _, part in _windows(x, layer.window, layer.strides, layer.padding, (1, 1), 0.0))
  return _average(np.asarray(total), layer.window[0] * layer.window[1], layer, context)


def _mean(layer: ir.Mean, inputs: list[np.ndarray], context: _Context) -> np.ndarray:
  x = _wide(inputs[0], context.tensors[layer.inputs[0]])
  return _average(x.sum((1, 2), keepdims=layer.keep_dims), x.shape[1] * x.shape[2], layer, context)


def _add(layer: ir.Add, inputs: list[np.ndarray], context: _Context) -> np.ndarray:
  made, (a, b) = context.tensors[layer.output], (context.tensors[name] for name in layer.inputs)
  if made.dtype == "float32":
    total = inputs[0] + inputs[1]
    return np.maximum(total, 0) if layer.relu else total
  steps = _steps(inputs[0], a), _steps(inputs[1], b)
  if context.rounding == "float32":
    total = xnnpack_sum(*steps, np.float32(a.scale / made.scale), np.float32(b.scale / made.scale))
  else:
    total = litert_sum(*steps, float(a.scale), float(b.scale), float(made.scale), context.rounding)
  return _codes(total, made, layer.relu)


def _reshape(layer: ir.Reshape, inputs: list[np.ndarray], context: _Context) -> np.ndarray:
  return inputs[0].reshape(-1, *context.tensors[layer.output].shape[1:])


def _relu(layer: ir.Relu, inputs: list[np.ndarray], context: _Context) -> np.ndarray:
  made, given = context.tensors[layer.output], context.tensors[layer.inputs[0]]
  if made.dtype == "float32":
    return np.maximum(inputs[0], 0)
  rounding = (
    "double" if context.rounding == "float32" else context.rounding
  )  # XNNPACK leaves this layer to the plain kernels
  return _codes(scaled(_steps(inputs[0], given), _ratio(given.scale, made, rounding), rounding), made, relu=True)


def _quantize(layer: ir.Quantize, inputs: list[np.ndarray], context: _Context) -> np.ndarray:
  return quantize(inputs[0], context.tensors[layer.output])


def _dequantize(layer: ir.Dequantize, inputs: list[np.ndarray], context: _Context) -> np.ndarray:
  given = context.tensors[layer.inputs[0]]
  return given.scale * _steps(inputs[0], given).astype(np.float32)


_LAYERS: dict[type, Callable[..., np.ndarray]] = {
  ir.Conv2D: _conv,
  ir.Dense: _dense,
  ir.Add: _add,
  ir.MaxPool: _max_pool,
  ir.AvgPool: _avg_pool,
  ir.Mean: _mean,
  ir.Reshape: _reshape,
  ir.Relu: _relu,
  ir.Quantize: _quantize,
  ir.Dequantize: _dequantize,
}
