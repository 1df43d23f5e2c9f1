"""Functions of numbers at the same place, in numpy."""

import numpy as np

from leanax.deploy import ir
from leanax.deploy.reference.context import Context, codes_of, divided, quantize, ratio, steps_of
from leanax.deploy.requantize import litert_sum, onnxruntime_product, onnxruntime_sum, scaled, xnnpack_sum


def _add(layer: ir.Add, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  made, (a, b) = context.tensors[layer.output], (context.tensors[name] for name in layer.inputs)
  if made.dtype == "float32":
    total = inputs[0] + inputs[1]
    return np.maximum(total, 0) if layer.relu else total
  steps = steps_of(inputs[0], a), steps_of(inputs[1], b)
  if context.runtime == "onnxruntime":
    grids = [(tensor.scale, tensor.zero_point) for tensor in (a, b, made)]
    total = onnxruntime_sum(inputs[0], inputs[1], *grids)
  elif context.rounding == "float32":
    total = xnnpack_sum(*steps, np.float32(a.scale / made.scale), np.float32(b.scale / made.scale))
  else:
    total = litert_sum(*steps, float(a.scale), float(b.scale), float(made.scale), context.rounding)
  return codes_of(total, made, layer.relu)


_OPERATIONS = {
  "add": np.add,
  "sub": np.subtract,
  "mul": np.multiply,
  "div": np.divide,
  "max": np.maximum,
  "min": np.minimum,
  "pow": np.power,
}


def _binary(layer: ir.Binary, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  if layer.operation == "mul" and context.tensors[layer.output].grid is not None:
    return _product(layer, inputs, context)
  with np.errstate(all="ignore"):
    return _OPERATIONS[layer.operation](*inputs).astype(context.tensors[layer.output].dtype)


def _product(layer: ir.Binary, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  """Returns the codes of a product: the product of steps, requantized by both scales over the result's."""
  made, (a, b) = context.tensors[layer.output], (context.tensors[name] for name in layer.inputs)
  product = steps_of(inputs[0], a) * steps_of(inputs[1], b)
  if context.runtime == "onnxruntime":
    return codes_of(onnxruntime_product(product, a.scale * b.scale / made.scale, made.zero_point), made)
  kind = np.float32 if context.rounding == "float32" else np.float64
  real = ratio(a.scale.astype(kind) * b.scale.astype(kind), made, context.rounding)
  return codes_of(scaled(product, real, context.rounding), made)


def _relu(layer: ir.Relu, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  made, given = context.tensors[layer.output], context.tensors[layer.inputs[0]]
  if made.dtype == "float32":
    return np.maximum(inputs[0], 0)
  if context.runtime == "onnxruntime":
    return divided(np.maximum(ir.dequantize(inputs[0], given), 0), made)
  rounding = (
    "double" if context.rounding == "float32" else context.rounding
  )  # XNNPACK leaves this layer to the plain kernels
  return codes_of(scaled(steps_of(inputs[0], given), ratio(given.scale, made, rounding), rounding), made, relu=True)


def _quantize(layer: ir.Quantize, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  tensor = context.tensors[layer.output]
  return divided(inputs[0], tensor) if context.runtime == "onnxruntime" else quantize(inputs[0], tensor)


def _dequantize(layer: ir.Dequantize, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  given = context.tensors[layer.inputs[0]]
  return given.scale * steps_of(inputs[0], given).astype(np.float32)


TABLE = {ir.Add: _add, ir.Binary: _binary, ir.Relu: _relu, ir.Quantize: _quantize, ir.Dequantize: _dequantize}
