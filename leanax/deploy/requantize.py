"""From an int32 accumulator to an int8 code: the roundings that runtimes use, in numpy integers.

A layer's accumulator stands at scale s_x * s_w and its result at s_y, so a code is round(acc * M) + zero point with
M = s_x * s_w / s_y (arXiv:1712.05877, equation 4). How that product is rounded differs:

- "float32": acc and M as float32, one float product, rounded half to even. What XNNPACK does (its "fp32"
  requantization), so what a .tflite file computes on a phone's or a server's CPU.
- "single": M as a 31-bit integer M0 and a shift; one rounding of the 64-bit product, ties upwards. What LiteRT's
  plain kernels do when built for single rounding.
- "double": the same M0; the product's high half is rounded, ties upwards, and the shifted result is rounded again, ties
  away from zero (gemmlowp's fixed point). What LiteRT's plain kernels do as they ship.
- "away": M0 and one rounding, ties away from zero. What the plain dense kernel of ai-edge-litert 2.3.0 was found to do.
"""

import numpy as np

from leanax.core.errors import unknown

ROUNDINGS = ("float32", "single", "double", "away")


def scaled(acc: np.ndarray, real: np.ndarray, rounding: str) -> np.ndarray:
  """Returns round(acc * real) as int64, for accumulators of any shape, one multiplier or one per channel (last axis).

  Args:
    acc: int32 values in an int64 array.
    real: the multipliers, float32 for "float32" and float64 otherwise.
    rounding: one of ROUNDINGS.

  Raises:
    UserError: an unknown rounding.
  """
  if rounding not in ROUNDINGS:
    raise unknown("requantization", rounding, ROUNDINGS)
  if rounding == "float32":
    return np.rint(acc.astype(np.float32) * np.asarray(real, np.float32)).astype(np.int64)
  mantissa, shift = quantized_multiplier(np.asarray(real, np.float64))
  return fixed_point(acc, mantissa, shift, rounding)


def quantized_multiplier(real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the integers (M0, shift) with real = M0 * 2^(shift - 31) and M0 in [2^30, 2^31), rounded to nearest."""
  fraction, shift = np.frexp(real)
  mantissa = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
  full = mantissa == 1 << 31
  mantissa, shift = np.where(full, mantissa >> 1, mantissa), shift + full
  return np.where(shift < -31, 0, mantissa), np.where(shift < -31, 0, shift).astype(np.int64)


def fixed_point(acc: np.ndarray, mantissa: np.ndarray, shift: np.ndarray, rounding: str) -> np.ndarray:
  """Returns the product acc * mantissa * 2^(shift - 31), rounded once ("single", "away") or twice ("double")."""
  if rounding == "single":
    total = 31 - shift
    return (acc * mantissa + (np.int64(1) << (total - 1))) >> total
  if rounding == "away":
    return _divide_by_power(acc * mantissa, 31 - shift)
  left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
  return _divide_by_power(_high_half(acc << left, mantissa), right)


def _high_half(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Returns the product's bits from 31 upwards, rounded to nearest, ties upwards."""
  return (a * b + (1 << 30)) >> 31


def _divide_by_power(x: np.ndarray, exponent: np.ndarray) -> np.ndarray:
  """Returns the quotient x / 2^exponent, rounded to nearest, ties away from zero."""
  half = (np.int64(1) << exponent) >> 1
  magnitude = (np.abs(x) + half) >> exponent
  return np.where(x < 0, -magnitude, magnitude)


def xnnpack_sum(a: np.ndarray, b: np.ndarray, scale_a: np.float32, scale_b: np.float32) -> np.ndarray:
  """Returns round(a * scale_a + b * scale_b) as XNNPACK adds int8: 21-bit multipliers, one shift, ties upwards.

  Args:
    a: codes less their zero point.
    b: the other operand's.
    scale_a: the scale of a over the result's, float32.
    scale_b: that of b.
  """
  exponent = int(np.frexp(max(scale_a, scale_b))[1]) - 1
  shift = 20 - exponent
  factors = [np.int64(np.rint(np.ldexp(np.float32(scale), shift))) for scale in (scale_a, scale_b)]
  return (a * factors[0] + b * factors[1] + (np.int64(1) << (shift - 1))) >> shift


def litert_sum(a: np.ndarray, b: np.ndarray, scale_a: float, scale_b: float, made: float, rounding: str) -> np.ndarray:
  """Does the same as LiteRT's plain kernels: operands at 20 extra bits on a common scale, then one requantization."""
  twice = 2 * max(scale_a, scale_b)
  terms = [scaled(x << 20, np.asarray(scale / twice), rounding) for x, scale in ((a, scale_a), (b, scale_b))]
  return scaled(terms[0] + terms[1], np.asarray(twice / ((1 << 20) * made)), rounding)


def litert_mean(total: np.ndarray, count: int, real: float, rounding: str) -> np.ndarray:
  """Returns round(total / count * real) as LiteRT's plain kernels do: 1 / count is in the multiplier, truncated."""
  mantissa, shift = quantized_multiplier(np.asarray(real))
  extra = min(count.bit_length() - 1, 32, 31 + int(shift))
  return fixed_point(total, (mantissa << extra) // count, shift - extra, rounding)


def onnxruntime_sum(a: np.ndarray, b: np.ndarray, *grids: tuple[np.ndarray, int]) -> np.ndarray:
  """Returns the sum's steps as onnxruntime adds uint8 codes on x86 with FMA: float32, each product fused with its sum.

  Args:
    a: int8 codes.
    b: the other operand's.
    *grids: scale and zero point of a, of b and of the result.
  """
  (scale_a, zero_a), (scale_b, zero_b), (made, zero) = grids
  share_a, share_b = (np.asarray(scale / made, np.float32) for scale in (scale_a, scale_b))
  left, right, third = (np.array(number + 128, np.float32) for number in (zero_a, zero_b, zero))
  offset = np.asarray(third - _fused(left, share_a, np.asarray(right * share_b)))
  codes = [x.astype(np.float32) + np.float32(128) for x in (a, b)]
  moved = _fused(codes[0], share_a, _fused(codes[1], share_b, offset))
  return np.rint(moved).astype(np.int64) - int(third)


def onnxruntime_product(product: np.ndarray, real: np.ndarray, zero_point: int) -> np.ndarray:
  """Returns round(product * real) as onnxruntime multiplies uint8 codes: the zero point is added before it rounds.

  Args:
    product: of codes less their zero points.
    real: the operands' scales over the result's, float32.
    zero_point: of the result's int8 codes.
  """
  moved = product.astype(np.float32) * np.asarray(real, np.float32) + np.float32(zero_point + 128)
  return np.rint(moved).astype(np.int64) - (zero_point + 128)


def _fused(x: np.ndarray, factor: np.ndarray, more: np.ndarray) -> np.ndarray:
  """Returns x * factor + more, rounded to float32 once: the product of 8 and 24 bits is exact in float64."""
  return np.asarray(x.astype(np.float64) * factor.astype(np.float64) + more.astype(np.float64)).astype(np.float32)
