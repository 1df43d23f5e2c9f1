"""Functions of single numbers and of rows, in numpy with float64 inside."""

import numpy as np

from leanax.deploy import ir
from leanax.deploy.functions import FUNCTIONS
from leanax.deploy.reference.context import Context, quantize, steps_of


def _activation(layer: ir.Activation, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  values = FUNCTIONS[layer.function](_values(layer, inputs[0], context), *layer.parameters)
  return _made(layer, values, context)


def _prelu(layer: ir.Prelu, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  x, slope = _values(layer, inputs[0], context), ir.values(context.tensors[layer.slope])
  return _made(layer, np.where(x >= 0, x, slope * x), context)


def _softmax(layer: ir.Softmax, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  x = _values(layer, inputs[0], context)
  moved = x - x.max(layer.axis, keepdims=True)
  total = np.exp(moved).sum(layer.axis, keepdims=True)
  return _made(layer, moved - np.log(total) if layer.log else np.exp(moved) / total, context)


def _values(layer: ir.Layer, x: np.ndarray, context: Context) -> np.ndarray:
  """Returns an input's numbers, or those that its codes stand for."""
  given = context.tensors[layer.inputs[0]]
  return x.astype(np.float64) if given.grid is None else given.scale.astype(np.float64) * steps_of(x, given)


def _made(layer: ir.Layer, values: np.ndarray, context: Context) -> np.ndarray:
  """Returns the layer's numbers as float32, or as codes on the output's grid."""
  made = context.tensors[layer.output]
  with np.errstate(over="ignore"):
    values = values.astype(np.float32)
  return values if made.grid is None else quantize(values, made)


TABLE = {ir.Activation: _activation, ir.Prelu: _prelu, ir.Softmax: _softmax}
