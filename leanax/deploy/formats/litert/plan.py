"""Layers to LiteRT operators and tensors, in the layouts and on the grids that the file has them.

Sources: the LiteRT schema, and the 8-bit quantization specification at ai.google.dev (int8 weights per output channel
along axis 0 of a convolution or dense kernel, 3 of a depthwise one; int32 biases; affine int8 activations).

A padding that is neither VALID nor SAME becomes a PAD layer before its own. An int8 average pool is written as a
depthwise convolution with weight 1 and scale 1 / window, because AVERAGE_POOL_2D cannot change the grid: the same
numbers, exactly, with any grid behind it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.formats.litert.limits import check_scales, check_size


class Written(NamedTuple):
  """One operator as the file has it: its code, the tensors it reads and makes, and its options by schema name."""

  code: str
  inputs: tuple[str | None, ...]
  output: str
  options: str | None = None
  fields: dict[str, Any] = {}  # noqa: RUF012


class Plan(NamedTuple):
  """The operators and tensors of a file, in the file's own layouts."""

  operators: list[Written]
  tensors: dict[str, ir.Tensor]


def planned(network: ir.Network) -> Plan:
  """Returns the operators and tensors of a network.

  Raises:
    UserError: an unsound network, or a layer, a ratio of scales or a size that LiteRT lacks.
  """
  # A sound network: every tensor is made before it is read, with the shape and grid that its layer gives it.
  ir.check(network)
  # Activations keep their names, shapes and grids; constants are added by the layers that read them, in their layout.
  plan = Plan([], {name: tensor for name, tensor in network.tensors.items() if tensor.data is None})
  # One operator per layer; a padding that the operator lacks becomes one before it.
  for layer in network.layers:
    if type(layer) not in _EMIT:
      known = ", ".join(kind.__name__ for kind in _EMIT)
      raise UserError(f"layer {layer.name!r} is a {type(layer).__name__}, which LiteRT lacks; expected one of {known}")
    check_scales(layer, network.tensors)  # before the runtime sees them: it ends the process at ratios it cannot hold
    _EMIT[type(layer)](plan, layer, network.tensors)
  check_size(plan.tensors)
  return plan


def _padding(
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
  wide = _keep(plan, source._replace(name=f"{layer.name}:padded", shape=shape))
  widths = _keep(plan, ir.Tensor(f"{layer.name}:pads", pads.shape, "int32", data=pads))
  if pad == "lowest":
    value = np.array([ir.QMIN if source.dtype == "int8" else np.finfo(np.float32).min], source.dtype)
    fill = _keep(plan, source._replace(name=f"{layer.name}:fill", shape=(1,), data=value))
    plan.operators.append(Written("PADV2", (source.name, widths, fill), wide))
  else:
    plan.operators.append(Written("PAD", (source.name, widths), wide))
  return wide, "VALID"


def _keep(plan: Plan, tensor: ir.Tensor) -> str:
  plan.tensors[tensor.name] = tensor
  return tensor.name


def _bias(plan: Plan, layer: ir.Conv2D | ir.Dense, tensors: dict[str, ir.Tensor]) -> str | None:
  return None if layer.bias is None else _keep(plan, tensors[layer.bias])


def _zeros(plan: Plan, layer: ir.Conv2D, kernel: ir.Tensor, source: ir.Tensor) -> str:
  """Returns a bias of zeros, on the grid that a bias has."""
  channels = kernel.shape[-1] or 0
  name, dtype = f"{layer.name}:zeros", "float32" if source.dtype == "float32" else "int32"
  grid = None if source.grid is None else ir.bias_grid(source, kernel)
  return _keep(plan, ir.Tensor(name, (channels,), dtype, grid, np.zeros(channels, dtype)))


def _turned(kernel: ir.Tensor, data: np.ndarray, axis: int) -> ir.Tensor:
  """Returns a kernel in the file's layout, with its output channels along `axis`."""
  grid = kernel.grid
  if grid is not None and grid.axis is not None:
    grid = dataclasses.replace(grid, axis=axis)
  return kernel._replace(shape=data.shape, data=data, grid=grid)


def _activate(layer: Any) -> str | None:
  return "RELU" if layer.relu else None


def _conv(plan: Plan, layer: ir.Conv2D, tensors: dict[str, ir.Tensor]) -> None:
  kernel, source = tensors[layer.kernel], tensors[layer.inputs[0]]
  # The kernel in the file's layout: output channels first, or last where each input channel has its own kernel.
  weights = ir.values(kernel)
  depthwise = layer.groups > 1 and layer.groups == source.shape[3]
  data = weights.transpose(2, 0, 1, 3) if depthwise else weights.transpose(3, 0, 1, 2)
  _keep(plan, _turned(kernel, data, 3 if depthwise else 0))
  bias = _bias(plan, layer, tensors)
  if bias is None:  # the runtime requires a bias here, though not in dense layers
    bias = _zeros(plan, layer, kernel, source)
  given, padding = _padding(plan, layer, tensors, weights.shape[:2], layer.dilation)
  fields = {
    **_window(padding, layer.strides),
    "DilationHFactor": layer.dilation[0],
    "DilationWFactor": layer.dilation[1],
    "FusedActivationFunction": _activate(layer),
  }
  if depthwise:
    fields["DepthMultiplier"] = data.shape[3] // layer.groups
  kind = ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions") if depthwise else ("CONV_2D", "Conv2DOptions")
  plan.operators.append(Written(kind[0], (given, kernel.name, bias), layer.output, kind[1], fields))


def _window(padding: Any, strides: Sequence[int]) -> dict[str, Any]:
  """Returns the fields of every operator whose window moves over an image."""
  return {"Padding": padding, "StrideH": strides[0], "StrideW": strides[1]}


def _dense(plan: Plan, layer: ir.Dense, tensors: dict[str, ir.Tensor]) -> None:
  kernel = tensors[layer.kernel]
  _keep(plan, _turned(kernel, ir.values(kernel).T, 0))
  inputs = (layer.inputs[0], kernel.name, _bias(plan, layer, tensors))
  fields = {"FusedActivationFunction": _activate(layer)}
  plan.operators.append(Written("FULLY_CONNECTED", inputs, layer.output, "FullyConnectedOptions", fields))


def _add(plan: Plan, layer: ir.Add, tensors: dict[str, ir.Tensor]) -> None:
  del tensors
  fields = {"FusedActivationFunction": _activate(layer)}
  plan.operators.append(Written("ADD", layer.inputs, layer.output, "AddOptions", fields))


def _pool(plan: Plan, layer: ir.MaxPool | ir.AvgPool, tensors: dict[str, ir.Tensor]) -> None:
  average = isinstance(layer, ir.AvgPool)
  if average and tensors[layer.inputs[0]].dtype == "int8":
    return _average(plan, layer, tensors)
  given, padding = _padding(plan, layer, tensors, layer.window, pad="counted" if average else "lowest")
  fields = {**_window(padding, layer.strides), "FilterHeight": layer.window[0], "FilterWidth": layer.window[1]}
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
  _conv(plan, conv, {**tensors, ones.name: ones})


def _mean(plan: Plan, layer: ir.Mean, tensors: dict[str, ir.Tensor]) -> None:
  del tensors
  axes = np.array([1, 2], np.int32)
  named = _keep(plan, ir.Tensor(f"{layer.name}:axes", axes.shape, "int32", data=axes))
  options = {"KeepDims": True} if layer.keep_dims else {}
  plan.operators.append(Written("MEAN", (layer.inputs[0], named), layer.output, "ReducerOptions", options))


def _reshape(plan: Plan, layer: ir.Reshape, tensors: dict[str, ir.Tensor]) -> None:
  shape = np.array([-1, *tensors[layer.output].shape[1:]], np.int32)
  named = _keep(plan, ir.Tensor(f"{layer.name}:shape", shape.shape, "int32", data=shape))
  plan.operators.append(
    Written("RESHAPE", (layer.inputs[0], named), layer.output, "ReshapeOptions", {"NewShape": shape})
  )


def _plain(code: str) -> Callable[..., None]:
  """Returns the emitter of an operator that has no options."""
  return lambda plan, layer, tensors: plan.operators.append(Written(code, layer.inputs, layer.output))


_EMIT: dict[type, Callable[..., None]] = {
  ir.Conv2D: _conv,
  ir.Dense: _dense,
  ir.Add: _add,
  ir.MaxPool: _pool,
  ir.AvgPool: _pool,
  ir.Mean: _mean,
  ir.Reshape: _reshape,
  ir.Relu: _plain("RELU"),
  ir.Quantize: _plain("QUANTIZE"),
  ir.Dequantize: _plain("DEQUANTIZE"),
}
