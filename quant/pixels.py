"""The grid of an input that has few levels, such as the pixels of 8-bit images. No paper.

A pixel is an integer already. A grid from the range of some calibration batches would round it again, and where pixels
have few levels some of them would fall exactly between two codes, which rounding errors then decide.
"""

import jax.numpy as jnp
import numpy as np

from quant.grid import Grid, affine


def pixel_grid(levels: np.ndarray, bits: int) -> Grid:
  """Returns the affine grid over all levels and 0; its step, up to 3 % wider, keeps levels farthest from ties.

  Args:
    levels: all numbers that the input can have, of any shape, float64.
    bits: the grid's width.
  """
  # Centred pixels would all be ties at a step of one level; a step up to 3 % wider keeps them off.
  steps = np.ptp(np.append(levels, 0.0)) / (2**bits - 1) * (1 + np.arange(16) / 512)
  off = [np.abs(np.mod(levels / step, 1.0) - 0.5).min() for step in steps]
  wider = steps[int(np.argmax(off))] / steps[0]
  return affine(jnp.float32(levels.min() * wider), jnp.float32(levels.max() * wider), bits)
