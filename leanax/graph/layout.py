"""The place of an operand in the leaf whose numbers it holds: an affine map from its indices to the leaf's.

Slices, transposes, reshapes, reversals, broadcasts and constant indices keep such a map; what does not (a reshape that
mixes axes, an index known only at run time) has none, and its user must look at the operand itself.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Digit(NamedTuple):
  """A part of an operand's axis: `length` steps of `stride` along an axis of the leaf; axis None stays where it is."""

  axis: int | None
  stride: int
  length: int


Digits = tuple[Digit, ...]


class View(NamedTuple):
  """The numbers of a leaf that an operand holds, and where.

  Attributes:
    shape: the leaf's shape.
    start: the index in the leaf of the operand's first element.
    axes: for each axis of the operand what a step along it does in the leaf, as digits of its index, the slowest first.
    scans: the same for each scan around the operand, outermost first: what one iteration more does.
  """

  shape: tuple[int, ...]
  start: tuple[int, ...]
  axes: tuple[Digits, ...]
  scans: tuple[Digits, ...] = ()

  def replaced(self, axes: Sequence[Digits], moved: Mapping[int, int] | None = None) -> "View":
    start = tuple(first + (moved or {}).get(axis, 0) for axis, first in enumerate(self.start))
    return self._replace(axes=tuple(axes), start=start)


def whole(shape: Sequence[int]) -> View | None:
  """Returns a leaf as it is; None for one without elements."""
  if 0 in shape:
    return None
  return View(tuple(shape), (0,) * len(shape), tuple((Digit(axis, 1, n),) for axis, n in enumerate(shape)))


def scanned(view: View) -> View:
  """Returns one iteration's slice of a leaf that a scan hands on along its first axis."""
  return view._replace(axes=view.axes[1:], scans=(*view.scans, view.axes[0]))


def repeated(view: View, length: int) -> View:
  """Returns a leaf that every iteration of a scan sees whole."""
  return view._replace(scans=(*view.scans, (Digit(None, 0, length),)))


def move(
  primitive: str, params: Mapping[str, Any], view: View, shape: Sequence[int], place: int, indices: Callable[[], Any]
) -> View | None:
  """Returns the view of an equation's result, or None if it has none.

  Args:
    primitive: the equation's primitive; its first operand is the one that is moved.
    params: its parameters.
    view: the first operand's.
    shape: the result's.
    place: which of the results.
    indices: returns the constant values of the other operands, None for what is not constant.
  """
  if primitive in _SAME:
    return view
  found = _MOVES.get(primitive)
  return None if found is None or 0 in shape else found(view, params, tuple(shape), place, indices)


def _merged(digits: Sequence[Digit]) -> list[Digit]:
  """Neighbours that together are one digit, as one."""
  found: list[Digit] = []
  for digit in digits:
    if found and found[-1].axis == digit.axis and found[-1].stride == digit.stride * digit.length:
      digit = Digit(digit.axis, digit.stride, digit.length * found.pop().length)
    found.append(digit)
  return found


def _reshape(view: View, params: Any, shape: tuple[int, ...], place: int, indices: Any) -> View | None:
  del place, indices
  if params.get("dimensions") is not None:  # a transpose before it
    view = view.replaced([view.axes[i] for i in params["dimensions"]])
  if [n for n in shape if n != 1] == [n for n in map(_length, view.axes) if n != 1]:  # axes of length 1 come and go
    wide = iter(axis for axis in view.axes if _length(axis) != 1)
    narrow = iter(axis for axis in view.axes if _length(axis) == 1)
    return view.replaced([next(wide) if n != 1 else next(narrow, ()) for n in shape])
  rest = _merged([digit for axis in view.axes for digit in axis if digit.length != 1])
  axes = []
  for size in shape:
    taken: list[Digit] = []
    while size > 1:
      axis, stride, length = rest.pop(0)
      if size % length == 0:
        taken.append(Digit(axis, stride, length))
        size //= length
      elif length % size == 0:
        inner = length // size
        taken.append(Digit(axis, stride * inner, size))
        rest.insert(0, Digit(axis, stride, inner))
        size = 1
      else:
        return None
    axes.append(tuple(_merged(taken)))
  return view.replaced(axes)


def _length(axis: Digits) -> int:
  return int(np.prod([digit.length for digit in axis], dtype=np.int64))


def _cut(digits: Digits, first: int, count: int, step: int) -> tuple[Digits, dict[int, int]] | None:
  """Returns every `step`-th of an axis's indices from `first` on: the digits left, and how far the start moves."""
  if not digits:
    return ((), {}) if (first, count) == (0, 1) else None
  (axis, stride, _), rest = digits[0], digits[1:]
  inner = _length(rest)
  slow, fast = divmod(first, inner)
  if not rest or (step == 1 and fast == 0 and count % inner == 0):
    cut: Digits = (Digit(axis, stride * step, count // inner), *rest)
    found: tuple[Digits, dict[int, int]] | None = (), {}
  elif slow == (first + (count - 1) * step) // inner:  # all of them at one index of the slowest digit
    cut, found = (), _cut(rest, fast, count, step)
  elif step % inner == 0:
    cut, found = (Digit(axis, stride * (step // inner), count),), _cut(rest, fast, 1, 1)
  else:
    return None
  if found is None:
    return None
  kept, moved = found[0] if not cut else (), dict(found[1])
  if axis is not None:
    moved[axis] = moved.get(axis, 0) + slow * stride
  return (*cut, *kept), moved


def _slices(view: View, cuts: Sequence[tuple[int, int, int]]) -> View | None:
  """Returns the same (first, count, step) of each axis."""
  axes, moved = [], dict[int, int]()
  for digits, (first, count, step) in zip(view.axes, cuts, strict=True):
    if (first, count, step) == (0, _length(digits), 1):
      axes.append(digits)
      continue
    found = _cut(digits, first, count, step)
    if found is None:
      return None
    axes.append(found[0])
    for axis, steps in found[1].items():
      moved[axis] = moved.get(axis, 0) + steps
  return view.replaced(axes, moved)


def _slice(view: View, params: Any, shape: tuple[int, ...], place: int, indices: Any) -> View | None:
  del place, indices
  steps = params["strides"] or (1,) * len(shape)
  return _slices(view, list(zip(params["start_indices"], shape, steps, strict=True)))


def _split(view: View, params: Any, shape: tuple[int, ...], place: int, indices: Any) -> View | None:
  del indices
  first = int(sum(params["sizes"][:place]))
  return _slices(view, [(first if i == params["axis"] else 0, n, 1) for i, n in enumerate(shape)])


def _unstack(view: View, params: Any, shape: tuple[int, ...], place: int, indices: Any) -> View | None:
  del shape, indices
  axis = params["axis"]
  cuts = [(place, 1, 1) if i == axis else (0, _length(digits), 1) for i, digits in enumerate(view.axes)]
  return _dropped(_slices(view, cuts), (axis,))


def _dropped(view: View | None, axes: Sequence[int]) -> View | None:
  return None if view is None else view.replaced([digits for i, digits in enumerate(view.axes) if i not in axes])


def _squeeze(view: View, params: Any, shape: tuple[int, ...], place: int, indices: Any) -> View | None:
  del shape, place, indices
  return _dropped(view, params["dimensions"])


def _transpose(view: View, params: Any, shape: tuple[int, ...], place: int, indices: Any) -> View:
  del shape, place, indices
  return view.replaced([view.axes[i] for i in params["permutation"]])


def _broadcast(view: View, params: Any, shape: tuple[int, ...], place: int, indices: Any) -> View:
  del place, indices
  axes: list[Digits] = [(Digit(None, 0, n),) if n != 1 else () for n in shape]
  for source, target in enumerate(params["broadcast_dimensions"]):
    if _length(view.axes[source]) == shape[target]:
      axes[target] = view.axes[source]
  return view.replaced(axes)


def _rev(view: View, params: Any, shape: tuple[int, ...], place: int, indices: Any) -> View:
  del shape, place, indices
  axes, moved = list(view.axes), dict[int, int]()
  for i in params["dimensions"]:
    for axis, stride, length in axes[i]:
      if axis is not None:
        moved[axis] = moved.get(axis, 0) + (length - 1) * stride
    axes[i] = tuple(Digit(axis, -stride, length) for axis, stride, length in axes[i])
  return view.replaced(axes, moved)


def _dynamic_slice(view: View, params: Any, shape: tuple[int, ...], place: int, indices: Any) -> View | None:
  del params, place
  firsts = indices()
  if any(first is None for first in firsts):
    return None
  lengths = map(_length, view.axes)
  starts = [min(max(int(first), 0), length - n) for first, length, n in zip(firsts, lengths, shape, strict=True)]
  return _slices(view, [(first, n, 1) for first, n in zip(starts, shape, strict=True)])


def _gather(view: View, params: Any, shape: tuple[int, ...], place: int, indices: Any) -> View | None:
  """One window at a constant place, or along one axis equally spaced ones; what lies outside has no view."""
  del place
  numbers, sizes, (rows,) = params["dimension_numbers"], params["slice_sizes"], indices()
  if rows is None or numbers.operand_batching_dims:
    return None
  rows = np.asarray(rows, np.int64).reshape(-1, len(numbers.start_index_map))
  steps = np.unique(np.diff(rows, axis=0), axis=0)
  cuts = [(0, n, 1) for n in sizes]
  for column, axis in enumerate(numbers.start_index_map):
    first, last = int(rows[0, column]), int(rows[-1, column])
    if min(first, last) < 0 or max(first, last) + sizes[axis] > _length(view.axes[axis]):
      return None
    cuts[axis] = (first, sizes[axis], 1)
  where = [i for i in range(len(shape)) if i not in numbers.offset_dims]
  spread: Digits = ()
  if len(rows) > 1:
    if len(steps) != 1 or np.count_nonzero(steps) != 1 or sum(shape[i] != 1 for i in where) != 1:
      return None
    axis = numbers.start_index_map[int(np.flatnonzero(steps[0])[0])]
    if sizes[axis] != 1 or axis not in numbers.collapsed_slice_dims:
      return None
    found = _cut(view.axes[axis], cuts[axis][0], len(rows), int(steps.sum()))
    if found is None:
      return None
    spread = found[0]
  cut = _dropped(_slices(view, cuts), numbers.collapsed_slice_dims)
  if cut is None:
    return None
  kept = iter(cut.axes)
  return cut.replaced(
    [next(kept) if i in numbers.offset_dims else spread if n != 1 else () for i, n in enumerate(shape)]
  )


_SAME = frozenset(
  (
    "convert_element_type",
    "copy",
    "copy_p",
    "name",
    "pcast",
    "pvary",
    "reduce_precision",
    "reshard",
    "sharding_constraint",
    "stop_gradient",
  )
)
_MOVES: dict[str, Callable[..., View | None]] = {
  "broadcast_in_dim": _broadcast,
  "dynamic_slice": _dynamic_slice,
  "gather": _gather,
  "reshape": _reshape,
  "rev": _rev,
  "slice": _slice,
  "split": _split,
  "squeeze": _squeeze,
  "transpose": _transpose,
  "unstack": _unstack,
}
