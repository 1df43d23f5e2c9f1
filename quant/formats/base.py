"""The kind of method that says which numbers a tensor may hold: the levels of a grid, in steps of its scale."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

Ends = tuple[int, int]  # the lowest and the highest code


@dataclasses.dataclass(frozen=True)
class Format:
  """The levels of a grid and their codes.

  Zero is a level and has the zero point as its code. Numbers u are the values over the scale; codes are whole floats of
  u's type within the ends, ascending as the levels do.

  Attributes:
    encode: (u, zero_point, ends) -> (the codes of the nearest levels, whether u is inside the range, where gradients
      pass straight through). The zero point is of u's type, and broadcasts.
    decode: (codes, zero_point, ends) -> the levels, in the type of both.
    levels: ends -> all levels for the zero point 0, ascending, float64; UserError for ends not served.
    widths: of the narrow signed grids that it serves, in bits.
  """

  encode: Callable[[jax.Array, jax.Array, Ends], tuple[jax.Array, jax.Array]]
  decode: Callable[[jax.Array, jax.Array, Ends], jax.Array]
  levels: Callable[[Ends], np.ndarray]
  widths: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 16)
