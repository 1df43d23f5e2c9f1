"""Layers that move numbers without changing them, in numpy."""

import numpy as np

from leanax.deploy import ir
from leanax.deploy.reference.context import Context, quantize


def _shape(layer: ir.Layer, inputs: list[np.ndarray], context: Context) -> tuple[int, ...]:
  """Returns the shape of the output, at the batch of the first input."""
  return (len(inputs[0]), *(int(size or 0) for size in context.tensors[layer.output].shape[1:]))


def _reshape(layer: ir.Reshape, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  return inputs[0].reshape(-1, *context.tensors[layer.output].shape[1:])


def _transpose(layer: ir.Transpose, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  return inputs[0].transpose(layer.permutation)


def _concat(layer: ir.Concat, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  batch = max(len(x) for x in inputs)  # constants have 1
  return np.concatenate([np.broadcast_to(x, (batch, *x.shape[1:])) for x in inputs], layer.axis)


def _slice(layer: ir.Slice, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  return inputs[0][tuple(map(slice, layer.starts, layer.stops, layer.strides))]


def _pad(layer: ir.Pad, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  if layer.mode != "constant":
    return np.pad(inputs[0], layer.padding, mode=layer.mode)  # pyrefly: ignore
  made, value = context.tensors[layer.output], np.array(layer.value, np.float32)
  return np.pad(inputs[0], layer.padding, constant_values=value if made.grid is None else quantize(value, made))


def _broadcast(layer: ir.Broadcast, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  return np.broadcast_to(inputs[0], _shape(layer, inputs, context))


def _resize(layer: ir.Resize, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  x = inputs[0]
  for axis, size in enumerate(_shape(layer, inputs, context)):
    if axis in (1, 2) and size != x.shape[axis]:
      x = _resized(x, axis, size, layer.method)
  return x


def _resized(x: np.ndarray, axis: int, size: int, method: str) -> np.ndarray:
  """Returns an axis at another size: pixel i has its centre at (i + 0.5) * old / new - 0.5, edges are repeated."""
  old = x.shape[axis]
  if method == "nearest":
    at = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * (np.float32(old) / np.float32(size))
    return x.take(np.minimum(np.floor(at).astype(int), old - 1), axis)
  at = (np.arange(size) + 0.5) * old / size - 0.5
  low = np.floor(at).astype(int)
  share = (at - low).reshape([-1 if place == axis else 1 for place in range(x.ndim)])
  before, behind = (x.take(np.clip(low + k, 0, old - 1), axis).astype(np.float64) for k in (0, 1))
  return (before * (1 - share) + behind * share).astype(np.float32)


def _gather(layer: ir.Gather, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  return np.take(inputs[0], inputs[1], layer.axis)


def _cast(layer: ir.Cast, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  return inputs[0].astype(context.tensors[layer.output].dtype)


TABLE = {
  ir.Reshape: _reshape,
  ir.Transpose: _transpose,
  ir.Concat: _concat,
  ir.Slice: _slice,
  ir.Pad: _pad,
  ir.Broadcast: _broadcast,
  ir.Resize: _resize,
  ir.Gather: _gather,
  ir.Cast: _cast,
}
