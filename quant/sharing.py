"""One array of scales for all uses of a leaf: written in the leaf's axes, read by each operand where it lies.

A product of integers needs scales that do not change along what is summed over. So the scales of a leaf vary along the
axes that some use keeps, and along those at which uses stand apart (layers of a stack, slices), never along one that a
use sums over. Uses that no such array serves (a matrix and its transpose, per channel) have grids of their own.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leanax.graph.layout import Digit, View

CHANNEL, SUM, APART = "channel", "sum", "apart"


class Use(NamedTuple):
  """One operand of a product.

  Attributes:
    view: where it lies in the leaf.
    channels: its axes that are not summed over, and the one of groups.
    along: the summed axis that is cut into groups with scales of their own; None for none.
    group: how many numbers a group has.
  """

  view: View
  channels: tuple[int, ...]
  along: int | None = None
  group: int = 0


class Scales(NamedTuple):
  """The place of an array of scales in a leaf.

  Attributes:
    shape: the leaf's, with an axis split in two or more where scales vary along a part of it only.
    splits: the same, by the leaf's axes.
    axis: the axes of `shape` that the array of scales has, in order.
    apart: those of them that are no channels of a layer but number layers or slices.
  """

  shape: tuple[int, ...]
  splits: tuple[tuple[int, ...], ...]
  axis: tuple[int, ...]
  apart: tuple[int, ...]


def share(uses: Sequence[Use]) -> Scales | None:
  """Returns the scales that serve all these uses of one leaf, or None if there are none."""
  splits, roles = [], []
  for axis, length in enumerate(uses[0].view.shape):
    parts = _parts(axis, length, uses)
    if parts is None:
      return None
    splits.append(tuple(n for n, _ in parts))
    roles.extend(role for _, role in parts)
  varying = tuple(i for i, role in enumerate(roles) if role != SUM)
  apart = tuple(i for i in varying if roles[i] == APART)
  return Scales(tuple(n for split in splits for n in split), tuple(splits), varying, apart)


def _parts(axis: int, length: int, uses: Sequence[Use]) -> list[tuple[int, str]] | None:
  """Returns the parts of one axis of the leaf, the slowest first, and the role of each; None if one would need two."""
  sizes = {_group(use, axis, length) for use in uses}
  if sizes != {0}:
    (size,) = sizes if len(sizes) == 1 else (None,)
    return None if size is None else [(length // size, CHANNEL), (size, SUM)]
  found = [_digits(use, axis) for use in uses]
  if not any(role == SUM for digits in found for _, role in digits):
    channel = any(role == CHANNEL for digits in found for _, role in digits)
    return [(length, CHANNEL if channel else APART if length > 1 else SUM)]
  bounds = {1, length}
  for digits in found:
    bounds |= {bound for (_, step, n), _ in digits for bound in (abs(step), abs(step) * n)}
  ends = sorted(bounds)
  if any(high % low for low, high in itertools.pairwise(ends)):
    return None
  parts: list[tuple[int, str]] = []
  for low, high in itertools.pairwise(ends):
    roles = {_role(use, axis, digits, low, high) for use, digits in zip(uses, found, strict=True)}
    if None in roles or {CHANNEL, SUM} <= roles:
      return None
    role = next(role for role in (CHANNEL, SUM, APART) if role in roles)
    n = high // low
    if parts and parts[0][1] == role:
      n *= parts.pop(0)[0]
    parts.insert(0, (n, role))
  return parts


def _group(use: Use, axis: int, length: int) -> int | None:
  """Returns the size of the groups along an axis of the leaf; 0 for none, None if they do not lie along all of it."""
  digits = () if use.along is None else use.view.axes[use.along]
  if all(digit.axis != axis for digit in digits):
    return 0
  return use.group if digits == (Digit(axis, 1, length),) else None


def _digits(use: Use, axis: int) -> list[tuple[Digit, str]]:
  """Returns the operand's steps along an axis of the leaf, with their roles; length 1 is a channel or nothing."""
  return [
    (digit, CHANNEL if i in use.channels else SUM)
    for i, digits in enumerate(use.view.axes)
    for digit in digits
    if digit.axis == axis and (digit.length > 1 or i in use.channels)
  ]


def _role(use: Use, axis: int, digits: Sequence[tuple[Digit, str]], low: int, high: int) -> str | None:
  """Returns the role of the part of an axis in steps of `low` up to `high`; None if the use starts in its middle."""
  role = next((role for (_, step, n), role in digits if abs(step) <= low and high <= abs(step) * n), None)
  if role is None:
    return APART
  first = use.view.start[axis] + sum((n - 1) * step for (_, step, n), _ in digits if step < 0)
  return None if first // low % (high // low) else role


def of_operand(scale: Any, scales: Scales, use: Use) -> Any:
  """Returns the scales of one operand: of its rank, 1 along what it sums over, behind one axis for each scan around it.

  Args:
    scale: an array, of jax or numpy, of the lengths that `scales.axis` has.
    scales: how it lies in the leaf.
    use: the operand. One for all has the rank 0, behind the axes of the scans.
  """
  scans, kept = _shape(use)
  if not scales.axis:
    return jnp.broadcast_to(scale, scans) if scans else scale
  flat = _places(scale.shape, scales, use)
  row, first, end = scale.reshape(-1), int(flat[0]), int(flat[0]) + flat.size
  if not np.array_equal(flat, np.arange(first, end)):
    row = row[flat]
  elif (first, end) != (0, row.size):
    row = row[first:end]
  return row.reshape(scans + kept)


def to_leaf(values: jax.Array, scales: Scales, use: Use, shape: tuple[int, ...]) -> jax.Array:
  """Returns non-negative values for an operand's axes, behind those of scans, as the largest per scale of the leaf.

  Args:
    values: of the operand's rank behind the scans, perhaps 1 long where they are all the same.
    scales: how the scales lie in the leaf.
    use: the operand.
    shape: that of the array of scales.
  """
  if not scales.axis:
    return jnp.max(values)
  scans, kept = _shape(use)
  wide = tuple(len(scans) + i for i, n in enumerate(kept) if n == 1 and values.shape[len(scans) + i] > 1)
  values = jnp.max(values, wide, keepdims=True) if wide else values
  row = jnp.broadcast_to(values, scans + kept).reshape(-1)
  flat, empty = _places(shape, scales, use), jnp.zeros(shape, values.dtype).reshape(-1)
  same = np.array_equal(flat, np.arange(empty.size))
  return (row if same else empty.at[flat].max(row)).reshape(shape)


def _shape(use: Use) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Returns the lengths of the scans, and the operand's shape with 1 along what it sums over."""
  lengths = [math.prod(digit.length for digit in digits) for digits in (*use.view.scans, *use.view.axes)]
  scans = len(use.view.scans)
  return tuple(lengths[:scans]), tuple(n if i in use.channels else 1 for i, n in enumerate(lengths[scans:]))


def _places(shape: tuple[int, ...], scales: Scales, use: Use) -> np.ndarray:
  """Returns, for each of an operand's scales, scans first, its place in the flat array of scales."""
  view = use.view
  kept = [digits if i in use.channels else () for i, digits in enumerate(view.axes)]
  every = list(itertools.chain(*view.scans, *kept))
  at = [np.asarray(first) for first in view.start]
  for place, digit in enumerate(every):
    if digit.axis is not None:
      index = np.arange(digit.length) * digit.stride
      at[digit.axis] = at[digit.axis] + index.reshape([-1 if i == place else 1 for i in range(len(every))])
  indices, part = [], 0
  for axis, split in enumerate(scales.splits):
    for i, n in enumerate(split):
      if part in scales.axis:
        indices.append(np.broadcast_to(at[axis] // math.prod(split[i + 1 :]) % n, [digit.length for digit in every]))
      part += 1
  return np.asarray(np.ravel_multi_index(tuple(indices), shape)).reshape(-1)


def overlap(one: View, other: View) -> bool:
  """Returns whether two operands may hold the same number of their leaf."""
  return all(a[0] <= b[1] and b[0] <= a[1] for a, b in zip(_spans(one), _spans(other), strict=True))


def _spans(view: View) -> list[tuple[int, int]]:
  spans = [(first, first) for first in view.start]
  for axis, step, n in itertools.chain(*view.axes, *view.scans):
    if axis is not None:
      low, high = spans[axis]
      reach = (n - 1) * step
      spans[axis] = (low + min(reach, 0), high + max(reach, 0))
  return spans


def written(leaf: Sequence[int], shape: Sequence[int], axis: Sequence[int]) -> Scales:
  """Returns the place of scales along these axes of `shape`, which is a leaf's shape with some axes split."""
  rest, splits = list(shape), []
  for length in leaf:
    parts = [rest.pop(0)]
    while math.prod(parts) < length:
      parts.append(rest.pop(0))
    splits.append(tuple(parts))
  return Scales(tuple(shape), tuple(splits), tuple(axis), ())
