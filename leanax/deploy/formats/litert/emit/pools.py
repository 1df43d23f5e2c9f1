"""Pools and means as LiteRT operators."""

import numpy as np

from leanax.deploy import ir
from leanax.deploy.formats.litert.emit.operators import Plan, Written, keep
from leanax.deploy.formats.litert.emit.weighted import conv as conv_of
from leanax.deploy.formats.litert.emit.weighted import padding_of, window_of


def _pool(plan: Plan, layer: ir.MaxPool | ir.AvgPool, tensors: dict[str, ir.Tensor]) -> None:
  average = isinstance(layer, ir.AvgPool)
  if average and tensors[layer.inputs[0]].dtype == "int8":
    return _average(plan, layer, tensors)
  given, padding = padding_of(plan, layer, tensors, layer.window, pad="counted" if average else "lowest")
  fields = {**window_of(padding, layer.strides), "FilterHeight": layer.window[0], "FilterWidth": layer.window[1]}
  code = "AVERAGE_POOL_2D" if average else "MAX_POOL_2D"
  plan.operators.append(Written(code, (given,), layer.output, "Pool2DOptions", fields))


def _average(plan: Plan, layer: ir.AvgPool, tensors: dict[str, ir.Tensor]) -> None:
  # A depthwise convolution with weight 1 and scale 1 / window: the same numbers, and it may change the grid.
  channels = tensors[layer.inputs[0]].shape[3] or 0
  shape = (*layer.window, 1, channels)
  scale = np.float32(1 / (layer.window[0] * layer.window[1]))
  ones = ir.Tensor(f"{layer.name}:ones", shape, "int8", ir.grid(scale), np.ones(shape, np.int8))
  conv = ir.Conv2D(
    layer.name, layer.inputs, layer.output, ones.name, None, layer.strides, layer.padding, groups=channels
  )
  conv_of(plan, conv, {**tensors, ones.name: ones})


def _mean(plan: Plan, layer: ir.Mean, tensors: dict[str, ir.Tensor]) -> None:
  del tensors
  axes = np.array([1, 2], np.int32)
  named = keep(plan, ir.Tensor(f"{layer.name}:axes", axes.shape, "int32", data=axes))
  options = {"KeepDims": True} if layer.keep_dims else {}
  plan.operators.append(Written("MEAN", (layer.inputs[0], named), layer.output, "ReducerOptions", options))


TABLE = {ir.MaxPool: _pool, ir.AvgPool: _pool, ir.Mean: _mean}
