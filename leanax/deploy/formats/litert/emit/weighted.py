"""Convolutions, dense layers and products of matrices as LiteRT operators."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from leanax.deploy import ir
from leanax.deploy.formats.litert.emit.operators import Plan, Written, activate, keep, packs, read


def padding_of(
  plan: Plan, layer: Any, tensors: dict[str, ir.Tensor], window: ir.Pair, dilation: ir.Pair = (1, 1), pad: str = "zero"
) -> tuple[str, str]:
  """Returns the input and the padding mode of a windowed layer.

  A padding that the layer itself cannot do becomes a layer before it: of zeros, of the lowest value (`pad` "lowest"),
  or of zeros that an average must count (`pad` "counted").
  """
  source = tensors[layer.inputs[0]]
  sizes = [int(size or 0) for size in source.shape[1:3]]
  if not any(map(any, layer.padding)):
    return source.name, "VALID"
  same = tuple(ir.same_padding(*args) for args in zip(sizes, window, layer.strides, dilation))
  if tuple(layer.padding) == same and pad != "counted":
    return source.name, "SAME"
  # Neither of the two modes: the padded tensor is a tensor of its own, on the grid of the input.
  pads = np.array([(0, 0), *layer.padding, (0, 0)], np.int32)
  (top, bottom), (left, right) = layer.padding
  shape = (None, sizes[0] + top + bottom, sizes[1] + left + right, source.shape[3])
  wide = keep(plan, source._replace(name=f"{layer.name}:padded", shape=shape))
  widths = keep(plan, ir.Tensor(f"{layer.name}:pads", pads.shape, "int32", data=pads))
  if pad == "lowest":
    value = np.array([ir.QMIN if source.dtype == "int8" else np.finfo(np.float32).min], source.dtype)
    fill = keep(plan, source._replace(name=f"{layer.name}:fill", shape=(1,), data=value))
    plan.operators.append(Written("PADV2", (source.name, widths, fill), wide))
  else:
    plan.operators.append(Written("PAD", (source.name, widths), wide))
  return wide, "VALID"


def _bias(plan: Plan, layer: ir.Conv2D | ir.Dense, tensors: dict[str, ir.Tensor]) -> str | None:
  return None if layer.bias is None else keep(plan, tensors[layer.bias])


def _zeros(plan: Plan, layer: ir.Conv2D, kernel: ir.Tensor, source: ir.Tensor) -> str:
  """Returns a bias of zeros, on the grid that a bias has."""
  channels = kernel.shape[-1] or 0
  name, dtype = f"{layer.name}:zeros", "float32" if source.dtype == "float32" else "int32"
  grid = None if source.grid is None else ir.bias_grid(source, kernel)
  return keep(plan, ir.Tensor(name, (channels,), dtype, grid, np.zeros(channels, dtype)))


def _turned(kernel: ir.Tensor, data: np.ndarray, axis: int) -> ir.Tensor:
  """Returns a kernel in the file's layout, with its output channels along `axis`."""
  grid = kernel.grid
  if grid is not None and grid.axis is not None:
    grid = dataclasses.replace(grid, axis=axis)
  return kernel._replace(shape=data.shape, data=data, grid=grid)


def _pointwise(layer: ir.Conv2D, kernel: ir.Tensor) -> bool:
  """Returns whether a convolution is a product at each pixel."""
  return kernel.shape[:2] == layer.strides == (1, 1) and layer.groups == 1 and not any(map(any, layer.padding))


def conv(plan: Plan, layer: ir.Conv2D, tensors: dict[str, ir.Tensor]) -> None:
  """Adds a convolution, depthwise where each input channel has its own kernels."""
  kernel, source = tensors[layer.kernel], tensors[layer.inputs[0]]
  if _pointwise(layer, kernel) and packs(kernel, kernel.shape[2]) and source.dtype == "int8":
    # The same products as a dense layer, of which the runtime reads packed weights.
    flat = kernel._replace(shape=kernel.shape[2:], data=ir.values(kernel)[0, 0])
    dense = ir.Dense(layer.name, layer.inputs, layer.output, layer.kernel, layer.bias, layer.relu)
    return _dense(plan, dense, {**tensors, kernel.name: flat})
  # The kernel in the file's layout: output channels first, or last where each input channel has its own kernel.
  weights = ir.values(kernel)
  depthwise = layer.groups > 1 and layer.groups == source.shape[3]
  data = weights.transpose(2, 0, 1, 3) if depthwise else weights.transpose(3, 0, 1, 2)
  keep(plan, _turned(kernel, data, 3 if depthwise else 0))
  bias = _bias(plan, layer, tensors)
  if bias is None:  # the runtime requires a bias here, though not in dense layers
    bias = _zeros(plan, layer, kernel, source)
  given, padding = padding_of(plan, layer, tensors, weights.shape[:2], layer.dilation)
  fields = {
    **window_of(padding, layer.strides),
    "DilationHFactor": layer.dilation[0],
    "DilationWFactor": layer.dilation[1],
    "FusedActivationFunction": activate(layer),
  }
  if depthwise:
    fields["DepthMultiplier"] = data.shape[3] // layer.groups
  kind = ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions") if depthwise else ("CONV_2D", "Conv2DOptions")
  plan.operators.append(Written(kind[0], (given, kernel.name, bias), layer.output, kind[1], fields))


def window_of(padding: Any, strides: Sequence[int]) -> dict[str, Any]:
  """Returns the fields of every operator whose window moves over an image."""
  return {"Padding": padding, "StrideH": strides[0], "StrideW": strides[1]}


def _dense(plan: Plan, layer: ir.Dense, tensors: dict[str, ir.Tensor]) -> None:
  kernel = tensors[layer.kernel]
  keep(plan, _turned(kernel, ir.values(kernel).T, 0))
  inputs = (layer.inputs[0], kernel.name, _bias(plan, layer, tensors))
  fields, version = {"FusedActivationFunction": activate(layer)}, None
  if len(tensors[layer.output].shape) > 2:
    fields, version = {**fields, "KeepNumDims": True}, 5
  plan.operators.append(Written("FULLY_CONNECTED", inputs, layer.output, "FullyConnectedOptions", fields, version))


def _matmul(plan: Plan, layer: ir.MatMul, tensors: dict[str, ir.Tensor]) -> None:
  fields = {"AdjY": True} if layer.transposed else {}
  given = read(plan, layer, tensors)
  plan.operators.append(Written("BATCH_MATMUL", given, layer.output, "BatchMatMulOptions", fields))


TABLE = {ir.Conv2D: conv, ir.Dense: _dense, ir.MatMul: _matmul}
