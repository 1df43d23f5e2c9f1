"""Grids of leaves in a packed file: their fields as JSON, their scales and zero points among the file's arrays."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from leanax.core.errors import UserError, nearest
from leanax.core.methods import methods
from leanax.deploy.packed import arrays
from leanax.deploy.packed.model import Damaged
from quant import Grid, formats

_STATIC = [field.name for field in dataclasses.fields(Grid) if field.metadata.get("static")]
_ARRAYS = ("scale", "zero_point")
_SCALES = ("float16", "bfloat16", "float32", "float64")


def plain(given: Mapping[str, Grid], leaves: Mapping[str, Any]) -> dict[str, Grid]:
  """Returns grids in the order of their names, with numpy's arrays.

  Raises:
    UserError: one is no grid, or of no leaf, or its numbers are none.
  """
  found = {}
  for name, grid in sorted(given.items()):
    if name not in leaves:
      near = nearest(name, leaves)
      hint = f"; did you mean {near[0]!r}?" if near else ""
      raise UserError(f"a grid is given for {name!r}, which is no leaf of the variables{hint}")
    if not isinstance(grid, Grid):
      raise UserError(f"the grid of {name!r} is of type {type(grid).__name__}; expected a quant.Grid")
    numbers: dict[str, Any] = {key: np.asarray(getattr(grid, key)) for key in _ARRAYS}
    found[name] = dataclasses.replace(grid, **numbers)
    _check(name, found[name])
  return found


def _check(name: str, grid: Grid) -> None:
  """Refuses a grid whose numbers are none."""
  scale, zero_point = np.asarray(grid.scale), np.asarray(grid.zero_point)
  lowest, highest = grid.ends
  if str(scale.dtype) not in _SCALES or zero_point.dtype != np.int32:
    kinds = f"{scale.dtype} and zero points of {zero_point.dtype}"
    raise UserError(f"the grid of {name!r} has scales of {kinds}; expected floats and int32")
  if not np.all(np.isfinite(scale) & (scale > 0)):
    raise UserError(f"the grid of {name!r} has a scale that is not positive and finite")
  if zero_point.shape not in ((), scale.shape) or np.any((zero_point < lowest) | (zero_point > highest)):
    raise UserError(f"the grid of {name!r} has zero points that are not those of its scales, or are no codes")
  if grid.format != "integer":
    if grid.format not in methods(formats) or np.any(zero_point):
      raise UserError(f"the grid of {name!r} has the format {grid.format!r} with a zero point, or no known format")
    assert grid.levels  # refused for widths that the format does not serve


def codes(array: np.ndarray, name: str, grid: Grid) -> np.ndarray | None:
  """Returns the codes of a leaf; None where rounding their values again gives others, and they are no codes of it.

  Raises:
    UserError: the grid does not fit the leaf, or the leaf holds NaN.
  """
  try:
    found = arrays.codes(array, grid)
    stored = arrays.values(found, grid, array.dtype)
    kept = np.all(np.isfinite(stored)) and np.array_equal(arrays.codes(stored, grid), found)
    return found if kept else None
  except UserError as error:
    raise UserError(f"the leaf {name!r} cannot be put on its grid: {error}") from error


def write(grid: Grid, add: Callable[[np.ndarray], int]) -> dict[str, Any]:
  """Returns a grid as JSON; `add` gives the index of an array in the file."""
  static = {key: getattr(grid, key) for key in _STATIC}
  return static | {key: add(np.asarray(getattr(grid, key))) for key in _ARRAYS}


def read(name: str, given: Any, at: Callable[[Any], np.ndarray]) -> Grid:
  """Returns the grid of its JSON; `at` gives the array of an index.

  Raises:
    Damaged: it is none.
  """
  if not isinstance(given, dict) or given.keys() != {*_STATIC, *_ARRAYS}:
    raise Damaged(f"the grid of {name!r} is none")
  axis, shape = (tuple(part) if isinstance(part, list) else part for part in (given["axis"], given["shape"]))
  whole = [given["bits"], *(() if shape is None else shape if isinstance(shape, tuple) else (None,))]
  whole += () if axis is None else axis if isinstance(axis, tuple) else (axis,)
  kinds = all(type(given[key]) is bool for key in ("signed", "narrow")) and isinstance(given["format"], str)
  if not kinds or any(type(number) is not int for number in whole):
    raise Damaged(f"the grid of {name!r} is none")
  numbers: dict[str, Any] = {key: at(given[key]) for key in _ARRAYS}
  grid = Grid(**{**given, "axis": axis, "shape": shape, **numbers})
  try:
    _check(name, grid)
  except UserError as error:
    raise Damaged(str(error)) from None
  return grid
