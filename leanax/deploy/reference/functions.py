"""Functions of single numbers and of rows, in numpy with float64 inside."""

import numpy as np

from leanax.deploy import ir
from leanax.deploy.functions import FUNCTIONS
from leanax.deploy.reference.context import Context, codes_of, quantize, ratio, steps_of
from leanax.deploy.requantize import quantized_multiplier, scaled


def _activation(layer: ir.Activation, inputs: list[np.ndarray], context: Context) -> np.ndarray:
  made, given = context.tensors[layer.output], context.tensors[layer.inputs[0]]
  if made.grid is not None and given.grid is not None:  # those that runtimes do not compute by a table of 256 codes
    if layer.function == "hard_swish":
      return hard_swish(steps_of(inputs[0], given), given, made)
    if layer.function in ("relu6", "clip") and not ir.same_grid(made.grid, given.grid):
      low, high = layer.parameters or (0, 6)
      return _clip(steps_of(inputs[0], given), given, made, low, high)
    if layer.function == "leaky_relu":
      return _leaky_relu(steps_of(inputs[0], given), given, made, layer.parameters[0], context.rounding)
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


def _clip(steps: np.ndarray, given: ir.Tensor, made: ir.Tensor, low: float, high: float) -> np.ndarray:
  """Returns codes between two limits on another grid, as LiteRT's plain kernels do it; XNNPACK leaves it to them."""
  moved = scaled(steps, ratio(given.scale, made, "double"), "double")
  low, high = (np.trunc(limit / made.scale + np.copysign(0.5, limit)) for limit in (low, high))
  return codes_of(np.minimum(np.maximum(moved, low), high), made)


def _leaky_relu(steps: np.ndarray, given: ir.Tensor, made: ir.Tensor, slope: float, rounding: str) -> np.ndarray:
  """Returns codes on another grid, the negative ones times a slope, with one multiplier for each sign."""
  ratios = [ratio(given.scale, made, rounding), ratio(given.scale * np.float32(slope), made, rounding)]
  if rounding == "float32":  # XNNPACK's multipliers have 8 bits behind the point
    above, below = ((steps * np.rint(256 * one).astype(np.int64) + 128) >> 8 for one in ratios)
  else:
    above, below = (scaled(steps, one, rounding) for one in ratios)
  return codes_of(np.where(steps >= 0, above, below), made)


def hard_swish(steps: np.ndarray, given: ir.Tensor, made: ir.Tensor) -> np.ndarray:
  """Returns codes of x * relu6(x + 3) / 6 in 16 bits of fixed point, as LiteRT's kernels compute them.

  Args:
    steps: int64 codes less their zero point.
    given: the input.
    made: the output, whose scale is more than 1 / 128 of the input's.
  """
  fine = np.float32(1 / 128) * given.scale  # of the steps with 7 more bits
  factor, shift = _halved(float(fine / made.scale))
  gate_factor, gate_shift = _halved(float(fine / np.float32(3 / 32768)))
  x = steps << 7
  gate = x
  if gate_shift > 0:
    gate = _int16(gate << (gate_shift - 1))
  gate = _high(gate * gate_factor)
  gate = _int16(gate << 1) if gate_shift > 0 else _divided(gate, -gate_shift)
  gate = (gate + (1 << 15)) >> 1  # from -1..1 to 0..1
  product = np.trunc(gate * _high(x * factor) / 2**15).astype(np.int64)
  return codes_of(_divided(product, -shift), made)


def _halved(real: float) -> tuple[int, int]:
  """Returns a multiplier as 16 bits and a shift."""
  mantissa, shift = quantized_multiplier(np.asarray(real))
  return int(min((mantissa + (1 << 15)) >> 16, 2**15 - 1)), int(shift)


def _int16(x: np.ndarray) -> np.ndarray:
  return np.clip(x, -(2**15), 2**15 - 1)


def _high(product: np.ndarray) -> np.ndarray:
  """Returns the bits from 15 upwards, rounded to nearest, ties upwards."""
  return (product + (1 << 14)) >> 15


def _divided(x: np.ndarray, exponent: int) -> np.ndarray:
  """Returns the quotient x / 2^exponent, rounded to nearest, ties away from zero."""
  magnitude = (np.abs(x) + ((1 << exponent) >> 1)) >> exponent
  return np.where(x < 0, -magnitude, magnitude)


TABLE = {ir.Activation: _activation, ir.Prelu: _prelu, ir.Softmax: _softmax}
