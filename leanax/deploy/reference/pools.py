"""Pools and means in numpy."""

import numpy as np

from leanax.deploy import ir
from leanax.deploy.reference.context import Context, codes_of, int32, ratio, wide
from leanax.deploy.reference.weighted import windows
from leanax.deploy.requantize import litert_mean, scaled


def _max_pool(layer: ir.MaxPool, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  lowest = -128 if inputs[0].dtype == np.int8 else -np.inf
  parts = windows(inputs[0], layer.window, layer.strides, layer.padding, (1, 1), lowest)
  return np.maximum.reduce([part for _, _, part in parts])


def _average(total: np.ndarray, count: int, layer: ir.Layer, context: Context) -> np.ndarray:
  """Returns a sum of steps or values over `count`, on the grid of the layer's output."""
  made, given = context.tensors[layer.output], context.tensors[layer.inputs[0]]
  if made.dtype == "float32":
    return (total / count).astype(np.float32)
  total = int32(total)
  kind = np.float32 if context.rounding == "float32" else np.float64
  share = given.scale.astype(kind) * np.float32(1 / count).astype(kind)
  if isinstance(layer, ir.AvgPool):  # a convolution with weight 1 at scale 1 / count, rounded as one
    return codes_of(scaled(total, ratio(share, made, context.rounding), context.rounding), made)
  if context.runtime == "onnxruntime":
    return codes_of(scaled(total, ratio(share, made, context.rounding), context.rounding), made)
  if context.rounding == "float32":  # here XNNPACK adds the zero point before it rounds: a tie goes to the even code
    moved = total.astype(np.float32) * ratio(share, made, "float32") + np.float32(made.zero_point)
    return codes_of(np.rint(moved).astype(np.int64) - made.zero_point, made)
  real = float(ratio(given.scale, made, context.rounding))
  return codes_of(litert_mean(total, count, real, context.rounding), made)


def _avg_pool(layer: ir.AvgPool, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  x = wide(inputs[0], context.tensors[layer.inputs[0]])
  total = sum(part for _, _, part in windows(x, layer.window, layer.strides, layer.padding, (1, 1), 0.0))
  return _average(np.asarray(total), layer.window[0] * layer.window[1], layer, context)


def _mean(layer: ir.Mean, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  x = wide(inputs[0], context.tensors[layer.inputs[0]])
  return _average(x.sum((1, 2), keepdims=layer.keep_dims), x.shape[1] * x.shape[2], layer, context)


TABLE = {ir.MaxPool: _max_pool, ir.AvgPool: _avg_pool, ir.Mean: _mean}
