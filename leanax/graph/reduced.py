"""The axes that a statistic keeps, given as an axis, as several, or as None for none."""

from typing import Any

import jax

from leanax.core.errors import UserError

Axis = int | tuple[int, ...] | None


def kept_shape(name: str, axis: Axis, x: jax.ShapeDtypeStruct) -> tuple[int, ...]:
  """Returns the lengths of the kept axes, in order.

  Args:
    name: of the statistic, for the error.
    axis: the kept axes; counted from the end if negative.
    x: the tensor.

  Raises:
    UserError: the tensor has no such axis, or an axis is named twice.
  """
  given, ndim = _tuple(axis), len(x.shape)
  places = {a % ndim for a in given if isinstance(a, int) and not isinstance(a, bool) and -ndim <= a < ndim}
  if len(places) != len(given):
    raise UserError(f"{name}: axis is {axis!r}; expected different axes of a tensor of the shape {tuple(x.shape)}")
  return tuple(x.shape[place] for place in sorted(places))


def others(axis: Axis, x: Any) -> tuple[int, ...]:
  """Returns the axes that are not kept."""
  kept = {a % x.ndim for a in _tuple(axis)}
  return tuple(place for place in range(x.ndim) if place not in kept)


def _tuple(axis: Axis) -> tuple[Any, ...]:
  return () if axis is None else tuple(axis) if isinstance(axis, tuple | list) else (axis,)
