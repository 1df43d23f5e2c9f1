"""The kernel of a site as a matrix (out, in) for each group, and back.

Methods that treat one site are written once in this form, for dense layers, convolutions (grouped, depthwise,
transposed) and einsums.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from leanax.core.errors import UserError
from leanax.graph.layout import Digit, View
from leanax.graph.ops import Op
from leanax.graph.rows import refusal


@dataclass(frozen=True, eq=False)
class Matmul:
  """The kernel of a site as matrices, and back. Both functions take numpy's arrays, or jax's, and return the same.

  Attributes:
    leaf: the leaf's name.
    shape: of the matrices, (*layers, groups, out, in): one layer for each turn of the scans around the site that reads
      another part of the leaf; groups are those of `graph.rows`, and so is the order of `in`.
  """

  leaf: str
  shape: tuple[int, ...]
  _whole: tuple[int, ...]  # the leaf's shape
  _places: tuple[np.ndarray, ...]  # of each axis of the leaf the indices that the kernel holds
  _split: tuple[int, ...]  # lengths of the digits that these axes are made of
  _order: tuple[int, ...]  # where the axes of the matrices, taken apart, are among the digits

  def take(self, leaf: Any) -> Any:
    """Returns the matrices of a leaf: a group's rows times the transpose of its matrix are the site's output."""
    self._check(leaf, self._whole, "the leaf")
    for axis, places in enumerate(self._places):
      if not _is_all(places, self._whole[axis]):
        leaf = leaf.take(places, axis)
    return leaf.reshape(self._split).transpose(self._order).reshape(self.shape)

  def put(self, leaf: Any, matrices: Any) -> Any:
    """Returns the leaf with these matrices for the kernel, in its type; what the site does not read stays as it is."""
    self._check(leaf, self._whole, "the leaf")
    self._check(matrices, self.shape, "as matrices, the kernel")
    split = [self._split[place] for place in self._order]
    part = matrices.reshape(split).transpose(np.argsort(self._order)).reshape([len(p) for p in self._places])
    part = part.astype(leaf.dtype)
    if all(map(_is_all, self._places, self._whole)):
      return part
    if not isinstance(leaf, np.ndarray):
      return jnp.asarray(leaf).at[np.ix_(*self._places)].set(part)
    new = leaf.copy()
    new[np.ix_(*self._places)] = part
    return new

  def _check(self, array: Any, shape: tuple[int, ...], what: str) -> None:
    if tuple(array.shape) != shape:
      raise UserError(f"{what} {self.leaf!r} has the shape {tuple(array.shape)}; expected {shape}")


def matmul(op: Op) -> Matmul:
  """Returns the form of the kernel of a dot or a convolution as matrices.

  Args:
    op: of `graph.trace(...).sites`.

  Raises:
    UserError: the operation is no product with a kernel, or its kernel is not a leaf's own numbers at known places:
      it is computed of them, or holds a number more than once.
  """
  why = refusal(op)
  if not why:
    operand = op.inputs[op.kernel_index or 0]
    if operand.leaf is None:
      why = "its kernel is a constant"
    elif not operand.exact:
      why = f"its kernel is computed from {operand.leaf!r}"
    elif operand.view is None:
      why = f"the places of its numbers in {operand.leaf!r} cannot be followed"
    else:
      found = _matmul(op, operand.leaf, operand.view)
      if found is not None:
        return found
      why = f"its kernel holds a number of {operand.leaf!r} more than once"
  raise UserError(f"the kernel of {op.name!r} is no matrix: {why}")


def _matmul(op: Op, leaf: str, view: View) -> Matmul | None:
  order, sizes = _order(op)
  layers = [scan for scan in view.scans if all(digit.axis is not None for digit in scan)]
  digits = [digit for axis in (*layers, *(view.axes[axis] for axis in order)) for digit in axis if digit.length > 1]
  if any(digit.axis is None for digit in digits):
    return None
  by_axis = sorted(range(len(digits)), key=lambda i: (digits[i].axis, -abs(digits[i].stride)))
  places = tuple(
    _indices(first, [digits[i] for i in by_axis if digits[i].axis == axis]) for axis, first in enumerate(view.start)
  )
  if any(len(np.unique(axis)) != len(axis) for axis in places):
    return None
  lengths = [math.prod(digit.length for digit in scan) for scan in layers]
  split = tuple(digits[i].length for i in by_axis)
  return Matmul(leaf, (*lengths, *sizes), view.shape, places, split, tuple(int(i) for i in np.argsort(by_axis)))


def _order(op: Op) -> tuple[tuple[int, ...], tuple[int, int, int]]:
  """Returns the axes of the kernel operand in the order (groups, out, in), and the sizes of the three."""
  kernel = op.kernel_index or 0
  shape = op.inputs[kernel].shape
  if op.kind == "conv":
    axes, groups = op.params["dimension_numbers"].rhs_spec, op.params["feature_group_count"]
    return axes, (groups, shape[axes[0]] // groups, math.prod(shape[axis] for axis in axes[1:]))
  contract, batch = (sides[kernel] for sides in op.params["dimension_numbers"])
  free = tuple(axis for axis in range(len(shape)) if axis not in contract and axis not in batch)
  groups, outputs, inputs = (math.prod(shape[axis] for axis in axes) for axes in (batch, free, contract))
  return (*batch, *free, *contract), (groups, outputs, inputs)


def _indices(first: int, digits: Sequence[Digit]) -> np.ndarray:
  """Returns the indices along an axis of a leaf that these digits reach, the first digit slowest."""
  places = np.asarray([first])
  for digit in digits:
    places = (places[:, None] + digit.stride * np.arange(digit.length)).reshape(-1)
  return places


def _is_all(places: np.ndarray, length: int) -> bool:
  return np.array_equal(places, np.arange(length))
