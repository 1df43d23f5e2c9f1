"""Tensors of the layer IR and their grids.

The arithmetic of codes is numpy's own here: nothing of the simulation's is called, so that the two can be compared.
"""

from typing import Any, NamedTuple

import numpy as np

from leanax.core.errors import UserError
from quant.grid import Grid

QMIN, QMAX = -128, 127


class Tensor(NamedTuple):
  """An activation (data None) or a constant.

  Attributes:
    name: unique within its network.
    shape: sizes; None for the batch.
    dtype: "float32", "int8", "int32" or "bool"; an input may be "uint8".
    grid: of an integer tensor's codes, its arrays numpy's (`grid`); None for a float tensor. Codes are signed, of a
      kernel with fewer bits stored as int8; a bias's have 32 bits.
    data: a constant's values or codes, of `dtype`.
  """

  name: str
  shape: tuple[int | None, ...]
  dtype: str = "float32"
  grid: Grid | None = None
  data: np.ndarray | None = None

  @property
  def scale(self) -> np.ndarray:
    """The grid's scale, float32: (), (channels,) along `axis`, or of a kernel in groups one for each block of it."""
    return np.asarray(on_grid(self).scale, np.float32)

  @property
  def zero_point(self) -> int:
    """The code of 0.0 of an activation; constants have 0."""
    return int(np.asarray(on_grid(self).zero_point).item())

  @property
  def axis(self) -> int | None:
    """The axis of a vector of scales; None for one scale, and for those of groups."""
    axis = on_grid(self).axis
    assert axis is None or isinstance(axis, int), self.name
    return axis

  @property
  def group(self) -> int | None:
    """The number of inputs (the second last axis) that share the scales of a kernel in groups; None of others."""
    grouped = self.grid is not None and self.axis is None and self.scale.ndim > 1
    return int(self.shape[-2] or 0) // self.scale.shape[-2] if grouped else None


def on_grid(tensor: Tensor) -> Grid:
  """Returns the grid of a tensor that must have one."""
  assert tensor.grid is not None, tensor.name
  return tensor.grid


def grid(scale: Any, zero_point: int = 0, *, bits: int = 8, narrow: bool = False, axis: int | None = None) -> Grid:
  """Returns a grid of signed codes that holds numpy arrays.

  Args:
    scale: (), (channels,) along `axis`, or without an axis of a kernel's rank, one for each block of it.
    zero_point: one for all channels.
    bits: width of the codes.
    narrow: whether the lowest code is left out.
    axis: of a vector of scales.
  """
  numbers: tuple[Any, Any] = np.asarray(scale, np.float32), np.array(zero_point, np.int32)
  return Grid(*numbers, bits=bits, signed=True, narrow=narrow, axis=axis)


def bias_grid(source: Tensor, kernel: Tensor) -> Grid:
  """Returns the grid of a bias: int32 codes at input scale times weight scale."""
  return grid(source.scale * kernel.scale, bits=32, axis=None if kernel.axis is None else 0)


def same_grid(a: Grid | None, b: Grid | None) -> bool:
  """Returns whether two activations hold the same values at the same codes."""
  if a is None or b is None:
    return a is b
  return bool(np.array_equal(a.scale, b.scale) and np.array_equal(a.zero_point, b.zero_point))


def describe(tensor: Tensor) -> str:
  """Returns a tensor in one line: name, type, shape and grid."""
  shape = "x".join("N" if size is None else str(size) for size in tensor.shape)
  numbers = ""
  if tensor.grid is not None and not tensor.scale.ndim:
    numbers = f" scale {float(tensor.scale):.6g} zero {tensor.zero_point}"
  return f"{tensor.name} {tensor.dtype}[{shape}]{numbers}"


def spread(scale: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Returns the scales of a kernel in groups, one for each block, as one for each of its numbers."""
  for axis, (length, count) in enumerate(zip(shape, scale.shape, strict=True)):
    scale = scale.repeat(length // count, axis)
  return scale


def values(constant: Tensor) -> np.ndarray:
  """Returns the data of a tensor that must have some."""
  assert constant.data is not None, constant.name
  return constant.data


def quantize(x: np.ndarray, tensor: Tensor) -> np.ndarray:
  """Returns a tensor's int8 codes of float values, in float32: clip(round_half_even(x * (1 / s)) + z, -128, 127).

  The reciprocal is rounded first, as XLA and the runtimes do it; a quotient would fall on another code now and then.

  Raises:
    UserError: the values hold NaN.
  """
  if np.isnan(x).any():
    raise UserError("codes of NaN: the array holds NaN, which is no number on a grid")
  steps = np.rint(np.asarray(x, np.float32) * (np.float32(1) / tensor.scale))
  return np.clip(steps + np.float32(tensor.zero_point), QMIN, QMAX).astype(np.int8)


def dequantize(codes: np.ndarray, tensor: Tensor) -> np.ndarray:
  """Returns the float32 values of a tensor's codes: scale * (code - zero_point)."""
  scale = tensor.scale if tensor.group is None else spread(tensor.scale, codes.shape)
  return scale * (codes.astype(np.int32) - tensor.zero_point).astype(np.float32)
