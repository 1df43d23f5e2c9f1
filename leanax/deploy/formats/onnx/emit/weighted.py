"""Convolutions, dense layers and matrix products as ONNX nodes."""

import dataclasses

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.formats.onnx.emit.elementwise import TYPES
from leanax.deploy.formats.onnx.emit.groups import is_int4, nbits, of_groups
from leanax.deploy.formats.onnx.emit.nodes import INT4, Plan
from leanax.deploy.formats.onnx.emit.shapes import reshape


def _weights(plan: Plan, layer: ir.Conv2D | ir.Dense | ir.TransposedConv2D, order: tuple[int, ...]) -> str:
  """Returns a layer's kernel with its axes in another order, the output channels first or (one scale) anywhere.

  Codes of 4 bits and fewer are stored as int4, two in a byte. onnxruntime has no integer kernels for these, but makes
  the int8 ones by a Cast when it opens the file. The kernel of a float layer becomes floats likewise, where a
  DequantizeLinear would be computed in each call.
  """
  name, kernel = layer.kernel, plan.tensors[layer.kernel]
  data, few = ir.values(kernel).transpose(order), is_int4(kernel)
  if kernel.group is not None:
    return of_groups(plan, kernel, data, kernel.scale.transpose(order))
  held = plan.constant(data, INT4 if few else None, name)
  if kernel.grid is None:
    return held
  axis = None if kernel.axis is None else order.index(kernel.axis % len(order))
  if plan.tensors[layer.inputs[0]].dtype != "int8":
    along = [-1 if place == axis else 1 for place in range(len(order))]
    scale = plan.constant(kernel.scale.reshape(along) if kernel.scale.ndim else kernel.scale, np.float32)
    floats = plan.node("Cast", held, output=f"{held}:float", to=TYPES["float32"])
    return plan.node("Mul", floats, scale, output=f"{held}:real:{scale}")
  if few:
    held = plan.node("Cast", held, output=f"{held}:int8", to=TYPES["int8"])
  scale = plan.constant(kernel.scale, np.float32, f"{name}:scale")
  zero = plan.constant(np.zeros(kernel.scale.shape, np.int8))
  fields = {} if axis is None else {"axis": axis}
  return plan.node("DequantizeLinear", held, scale, zero, output=f"{held}:real:{scale}", **fields)


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
  return plan.node("Max", value, output=f"{value}:kept") if layer.inputs[0] in plan.dequantized else value


def conv(plan: Plan, layer: ir.Conv2D) -> None:
  """Adds a convolution, of any groups."""
  shape = plan.tensors[layer.kernel].shape
  weights = _weights(plan, layer, (3, 2, 0, 1))
  inputs = (_given(plan, layer, first=True), weights, *_bias(plan, layer.bias))
  fields = {"strides": layer.strides, "dilations": layer.dilation, "pads": pads(layer.padding), "group": layer.groups}
  plan.result(layer, "Conv", *inputs, first=True, kernel_shape=shape[:2], **fields)


def _transposed(plan: Plan, layer: ir.TransposedConv2D) -> None:
  if any(cut < 0 for both in layer.cut for cut in both):
    raise UserError(f"layer {layer.name!r} adds rows or columns to a transposed convolution, which ONNX lacks; pad it")
  shape = plan.tensors[layer.kernel].shape
  weights = _weights(plan, layer, (2, 3, 0, 1))
  inputs = (_given(plan, layer, first=True), weights, *_bias(plan, layer.bias))
  fields = {"strides": layer.strides, "pads": pads(layer.cut), "kernel_shape": shape[:2]}
  plan.result(layer, "ConvTranspose", *inputs, first=True, **fields)


def _dense(plan: Plan, layer: ir.Dense) -> None:
  source, made = plan.tensors[layer.inputs[0]], plan.tensors[layer.output]
  if by_groups := nbits(plan, plan.tensors[layer.kernel]):
    inputs, fields = by_groups
    value, bias = (_given(plan, layer), *inputs), _bias(plan, layer.bias)
    if bias:
      plan.result(layer, "Add", plan.node("MatMulNBits", *value, **fields), *bias)
    else:
      plan.result(layer, "MatMulNBits", *value, **fields)
    return
  if len(source.shape) == 2:
    inputs = (_given(plan, layer), _weights(plan, layer, (1, 0)), *_bias(plan, layer.bias))
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
