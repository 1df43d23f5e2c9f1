"""What the layers of the reference interpreter share: tensors, roundings, codes and steps."""

from typing import Any, NamedTuple

import numpy as np

from leanax.deploy import ir


class Context(NamedTuple):
  """The tensors of a network, and the roundings of requantization (deploy/requantize.py)."""

  tensors: dict[str, ir.Tensor]
  dense: str  # the rounding of dense layers
  rounding: str  # that of all others
  runtime: str = "litert"  # whose sums, means and quantization


def quantize(x: np.ndarray, tensor: ir.Tensor) -> np.ndarray:
  """Returns the codes clip(round_half_even(x * (1 / s)) + z, -128, 127), reciprocal and product in float32."""
  inverse = np.reciprocal(tensor.scale.astype(np.float32))
  steps = np.round(np.multiply(x.astype(np.float32), inverse)).astype(np.float64)
  return codes_of(steps, tensor)


def divided(x: np.ndarray, tensor: ir.Tensor) -> np.ndarray:
  """Returns the codes clip(round_half_even(x / s) + z, -128, 127), the quotient in float32, as onnxruntime has it."""
  return codes_of(np.rint(x.astype(np.float32) / tensor.scale.astype(np.float32)).astype(np.float64), tensor)


def codes_of(steps: np.ndarray, tensor: ir.Tensor, relu: bool = False) -> np.ndarray:
  """Returns the codes of whole steps around 0.0; ReLU is a clip at the zero point."""
  low = max(-128, tensor.zero_point) if relu else -128
  return np.minimum(np.maximum(steps + tensor.zero_point, low), 127).astype(np.int8)


def steps_of(codes: np.ndarray, tensor: ir.Tensor) -> np.ndarray:
  """Codes less their zero point, in int64."""
  return codes.astype(np.int64) - tensor.zero_point


def int32(total: np.ndarray) -> np.ndarray:
  """Returns a sum cut to 32 bits, as an int32 accumulator wraps, in int64."""
  return total.astype(np.int64).astype(np.int32).astype(np.int64)


def ratio(above: Any, below: ir.Tensor, rounding: str) -> np.ndarray:
  """Returns a multiplier s / s_y in the precision that the rounding's runtime computes it in."""
  kind = np.float32 if rounding == "float32" else np.float64
  return np.asarray(above, kind) / below.scale.astype(kind)


def wide(codes: np.ndarray, tensor: ir.Tensor) -> np.ndarray:
  """Values or steps as float64, for exact sums of products."""
  return codes.astype(np.float64) if tensor.dtype == "float32" else steps_of(codes, tensor).astype(np.float64)
