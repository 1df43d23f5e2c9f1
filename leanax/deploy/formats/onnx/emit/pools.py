"""Pools and means as ONNX nodes."""

import numpy as np

from leanax.deploy import ir
from leanax.deploy.formats.onnx.emit.nodes import Plan
from leanax.deploy.formats.onnx.emit.weighted import conv, pads


def _max_pool(plan: Plan, layer: ir.MaxPool) -> None:
  fields = {"kernel_shape": layer.window, "strides": layer.strides, "pads": pads(layer.padding)}
  plan.moved(layer, "MaxPool", plan.value(layer.inputs[0], first=True), first=True, **fields)


def _avg_pool(plan: Plan, layer: ir.AvgPool) -> None:
  source = plan.tensors[layer.inputs[0]]
  if source.dtype != "int8":
    fields = {"kernel_shape": layer.window, "strides": layer.strides, "pads": pads(layer.padding)}
    given = plan.real(source.name, first=True)
    plan.result(layer, "AveragePool", given, first=True, count_include_pad=1, **fields)
    return
  # A depthwise convolution with weight 1 and scale 1 / window: integers throughout, in any runtime.
  shape = (*layer.window, 1, int(source.shape[3] or 0))
  scale = np.float32(1 / (layer.window[0] * layer.window[1]))
  ones = ir.Tensor(f"{layer.name}:ones", shape, "int8", ir.grid(scale), np.ones(shape, np.int8))
  plan.tensors[ones.name] = ones
  ends = (layer.name, layer.inputs, layer.output)
  conv(plan, ir.Conv2D(*ends, ones.name, None, layer.strides, layer.padding, groups=shape[3]))


def _mean(plan: Plan, layer: ir.Mean) -> None:
  made = plan.tensors[layer.output]
  given = plan.real(layer.inputs[0], first=True)
  if layer.keep_dims:
    plan.result(layer, "GlobalAveragePool", given, first=True)
    return
  # The only integer kernel of a mean is the global pool's, which keeps its axes; what it makes is reshaped.
  kept = made._replace(name=f"{layer.name}:kept", shape=(None, 1, 1, made.shape[-1]))
  plan.tensors[kept.name] = kept
  plan.result(ir.Mean(layer.name, layer.inputs, kept.name), "GlobalAveragePool", given, first=True)
  plan.moved(layer, "Flatten", plan.value(kept.name, first=True), axis=1)


TABLE = {ir.MaxPool: _max_pool, ir.AvgPool: _avg_pool, ir.Mean: _mean}
