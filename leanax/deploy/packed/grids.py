"""Grids of leaves in a packed file: their fields as JSON, their scales and zero points among the file's arrays.

The values of codes q are s (q - z), one product in the type of the scale (float32 but for models of other floats),
rounded to the leaf's type; in formats that are no integers, s times the level of q (`quant.formats`).
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

import quant
from leanax.core.errors import UserError, nearest
from leanax.core.methods import methods
from leanax.deploy.packed.model import Damaged
from quant import Grid, formats
from quant.grid import laid_out

_STATIC = [field.name for field in dataclasses.fields(Grid) if field.metadata.get("static")]
_ARRAYS = ("scale", "zero_point")
_SCALES = ("float16", "bfloat16", "float32", "float64")


def plain(given: Mapping[str, Grid], leaves: Collection[str]) -> dict[str, Grid]:
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
    found = _codes(array, grid)
    stored = values(found, grid, array.dtype)
    kept = np.all(np.isfinite(stored)) and np.array_equal(_codes(stored, grid), found)
    return found if kept else None
  except UserError as error:
    raise UserError(f"the leaf {name!r} cannot be put on its grid: {error}") from error


def _codes(array: Any, grid: Any) -> np.ndarray:
  """Returns `quant.codes` of an array, bit for bit; integers without a compilation for each shape.

  Raises:
    UserError: as of `quant.codes`.
  """
  scales = np.asarray(grid.scale, np.float64)
  dtype = max((array.dtype, np.asarray(grid.scale).dtype), key=lambda one: one.itemsize)
  plain = array.dtype.kind == "f" and dtype in (np.float32, np.float64)
  # XLA takes numbers below the normal ones for zero, reciprocals too.
  if grid.format != "integer" or not plain or not np.all((scales > 2.0**-125) & (scales < 2.0**125)):
    return np.asarray(quant.codes(array, grid))
  if np.any(np.isnan(array)):
    raise UserError("codes of NaN: the array holds NaN, which is no number on a grid")
  laid, scale, zero_point = (np.asarray(part) for part in laid_out(array, grid))
  with np.errstate(over="ignore"):
    steps = laid.astype(dtype, copy=False) * (1 / scale.astype(dtype, copy=False))
  return np.clip(np.rint(steps) + zero_point.astype(dtype), grid.qmin, grid.qmax).astype(np.int32).reshape(array.shape)


def values(codes: Any, grid: Grid, dtype: np.dtype) -> np.ndarray:
  """Returns the values of codes, of their shape; the grid's arrays are numpy's.

  Raises:
    UserError: the grid's scales do not fit the shape.
  """
  laid, scale, zero_point = (np.asarray(part) for part in laid_out(codes, grid))  # shapes alone, in any array library
  if grid.format == "integer":
    steps = laid - zero_point
  else:
    levels = np.asarray(grid.levels)  # symmetric: the middle one is zero, of code 0
    place = laid + len(levels) // 2
    if np.any((place < 0) | (place >= len(levels))):
      raise UserError(f"codes beyond the {len(levels)} levels of {grid.format}")
    steps = levels[place]
  if np.broadcast_shapes(scale.shape, steps.shape) != laid.shape:
    raise UserError(f"scales of shape {scale.shape} do not fit the shape {codes.shape}")
  with np.errstate(over="ignore"):
    return (scale * steps.astype(scale.dtype)).astype(dtype, copy=False).reshape(codes.shape)


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
  fields: dict[str, Any] = {**given, "axis": axis, "shape": shape, **{key: at(given[key]) for key in _ARRAYS}}
  grid = Grid(**fields)
  try:
    _check(name, grid)
  except UserError as error:
    raise Damaged(str(error)) from None
  return grid
