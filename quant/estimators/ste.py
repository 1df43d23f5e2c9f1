"""Straight-through rounding (Bengio et al., arXiv:1308.3432): gradients pass where the code is inside the grid.

    x̂ = s * (clip(round(x/s) + z) - z),   ∂x̂/∂x = 1  if the rounded code is inside the grid,  else 0

The scale is not trained: it stays that of the observed range. Rounding itself is that of the grid's format, which also
says what is inside.
"""

import jax

from quant.estimators.base import Estimator, Placed
from quant.grid import steps_to


def ste() -> Estimator:
  """The gradient passes straight through inside the grid; the scale stays as calibrated."""
  return Estimator(_steps, formats=None)


def _steps(placed: Placed) -> jax.Array:
  return steps_to(placed.ends, placed.x, placed.scale, placed.zero_point, placed.format)
