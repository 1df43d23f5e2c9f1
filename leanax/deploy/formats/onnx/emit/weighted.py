"""Convolutions, dense layers and matrix products as ONNX nodes."""

import dataclasses

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.formats.onnx.emit.nodes import Plan
from leanax.deploy.formats.onnx.emit.shapes import reshape


def _weights(plan: Plan, name: str, order: tuple[int, ...]) -> str:
  """Returns a kernel with its axes in another order, the output channels first or (one scale) anywhere."""
  kernel = plan.tensors[name]
  data = plan.constant(ir.values(kernel).transpose(order), name=name)
  if kernel.grid is None:
    return data
  axis = {} if kernel.axis is None else {"axis": order.index(kernel.axis % len(order))}
  scale = plan.constant(kernel.scale, np.float32, f"{name}:scale")
  zero = plan.constant(np.zeros(kernel.scale.shape, np.int8))
  return plan.node("DequantizeLinear", data, scale, zero, output=f"{data}:real:{scale}", **axis)


def _bias(plan: Plan, name: str | None) -> tuple[str, ...]:
  if name is None:
    return ()
  bias = plan.tensors[name]
  data = plan.constant(ir.values(bias), name=name)
  if bias.grid is None:
    return (data,)
  scale = plan.constant(bias.scale, np.float32, f"{name}:scale")
  axis = {"axis": 0} if bias.scale.ndim else {}
  return (plan.node("DequantizeLinear", data, scale, output=f"{data}:real:{scale}", **axis),)


def _given(plan: Plan, layer: ir.Conv2D | ir.Dense | ir.TransposedConv2D, first: bool = False) -> str:
  """Returns the input of a layer with weights.

  Between DequantizeLinear and QuantizeLinear onnxruntime would round the weights of a float layer to int8, by grids of
  its own; a node that keeps all numbers, and that it does not take away, prevents that.
  """
  value = plan.real(layer.inputs[0], first)
  held = layer.inputs[0] in plan.dequantized and plan.tensors[layer.kernel].dtype != "int8"
  return plan.node("Max", value, output=f"{value}:kept") if held else value


def conv(plan: Plan, layer: ir.Conv2D) -> None:
  """Adds a convolution, of any groups."""
  shape = plan.tensors[layer.kernel].shape
  weights = _weights(plan, layer.kernel, (3, 2, 0, 1))
  inputs = (_given(plan, layer, first=True), weights, *_bias(plan, layer.bias))
  fields = {"strides": layer.strides, "dilations": layer.dilation, "pads": pads(layer.padding), "group": layer.groups}
  plan.result(layer, "Conv", *inputs, first=True, kernel_shape=shape[:2], **fields)


def _transposed(plan: Plan, layer: ir.TransposedConv2D) -> None:
  if any(cut < 0 for both in layer.cut for cut in both):
    raise UserError(f"layer {layer.name!r} adds rows or columns to a transposed convolution, which ONNX lacks; pad it")
  shape = plan.tensors[layer.kernel].shape
  weights = _weights(plan, layer.kernel, (2, 3, 0, 1))
  inputs = (_given(plan, layer, first=True), weights, *_bias(plan, layer.bias))
  fields = {"strides": layer.strides, "pads": pads(layer.cut), "kernel_shape": shape[:2]}
  plan.result(layer, "ConvTranspose", *inputs, first=True, **fields)


def _dense(plan: Plan, layer: ir.Dense) -> None:
  source, made = plan.tensors[layer.inputs[0]], plan.tensors[layer.output]
  if len(source.shape) == 2:
    inputs = (_given(plan, layer), _weights(plan, layer.kernel, (1, 0)), *_bias(plan, layer.bias))
    plan.result(layer, "Gemm", *inputs, transB=1)
    return
  # Of more axes: Gemm takes matrices, so all but the last axis become one, and come back.
  rows = source._replace(name=f"{layer.name}:rows", shape=(None, source.shape[-1]))
  product = made._replace(name=f"{layer.name}:product", shape=(None, made.shape[-1]))
  plan.tensors |= {tensor.name: tensor for tensor in (rows, product)}
  if source.name in plan.dequantized:
    plan.dequantized.add(rows.name)
  reshape(plan, ir.Reshape(rows.name, layer.inputs, rows.name))
  _dense(plan, dataclasses.replace(layer, inputs=(rows.name,), output=product.name))
  reshape(plan, ir.Reshape(layer.name, (product.name,), layer.output))


def _matmul(plan: Plan, layer: ir.MatMul) -> None:
  left, right = (plan.real(name) for name in layer.inputs)
  if layer.transposed:
    rank = len(plan.tensors[layer.inputs[1]].shape)
    right = plan.node("Transpose", right, perm=(*range(rank - 2), rank - 1, rank - 2))
  plan.result(layer, "MatMul", left, right)


def pads(padding: ir.Padding) -> tuple[int, ...]:
  """Returns a window's padding as ONNX has it: all that is before, then all that is behind."""
  return tuple(before for before, _ in padding) + tuple(after for _, after in padding)


TABLE = {ir.Conv2D: conv, ir.TransposedConv2D: _transposed, ir.Dense: _dense, ir.MatMul: _matmul}
