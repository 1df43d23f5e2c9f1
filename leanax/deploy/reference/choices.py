"""Reductions over axes, and layers that look at values, in numpy."""

import numpy as np

from leanax.deploy import ir
from leanax.deploy.reference.context import Context

_REDUCE = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min, "prod": np.prod, "any": np.any, "all": np.all}
_COMPARE = {
  "lt": np.less,
  "le": np.less_equal,
  "gt": np.greater,
  "ge": np.greater_equal,
  "eq": np.equal,
  "ne": np.not_equal,
}


def _wide(x: np.ndarray) -> np.ndarray:
  return x.astype(np.float64) if x.dtype == np.float32 else x


def _reduce(layer: ir.Reduce, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  found = _REDUCE[layer.operation](_wide(inputs[0]), axis=layer.axes, keepdims=layer.keep_dims)
  return np.asarray(found).astype(context.tensors[layer.output].dtype)


def _cumulative(layer: ir.CumSum, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  x = _wide(inputs[0])
  found = np.flip(np.flip(x, layer.axis).cumsum(layer.axis), layer.axis) if layer.reverse else x.cumsum(layer.axis)
  return found.astype(context.tensors[layer.output].dtype)


def _compare(layer: ir.Compare, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  return _COMPARE[layer.operation](*inputs)


def _select(layer: ir.Select, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  return np.where(*inputs)


def _largest(layer: ir.ArgMax, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  return inputs[0].argmax(layer.axis).astype(np.int32)


def _least(layer: ir.ArgMin, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  return inputs[0].argmin(layer.axis).astype(np.int32)


TABLE = {
  ir.Reduce: _reduce,
  ir.CumSum: _cumulative,
  ir.Compare: _compare,
  ir.Select: _select,
  ir.ArgMax: _largest,
  ir.ArgMin: _least,
}
