"""The grid of pixels: each level has a code of its own, far from ties."""

import numpy as np
import pytest

import quant

LEVELS = np.arange(256.0)


@pytest.mark.parametrize("mean", [0.0, 127.5, 33.3])
@pytest.mark.parametrize("std", [1.0, 78.6])
def test_levels_keep_their_codes_apart_and_off_the_ties(mean, std):
  levels = (LEVELS / 255 - mean / 255) / (std / 255)
  grid = quant.pixel_grid(levels, 8)
  steps = levels / np.float64(grid.scale)
  assert np.min(np.abs(steps % 1 - 0.5)) > 1e-3
  ends = (np.asarray([grid.qmin, grid.qmax]) - int(grid.zero_point)) * float(grid.scale)
  assert ends[0] <= levels.min() + float(grid.scale) and ends[1] >= levels.max() - float(grid.scale)
  codes = np.asarray(quant.codes(levels.astype(np.float32), grid))
  assert np.all(np.diff(codes) >= 0) and len(set(codes.tolist())) >= 245


def test_plain_pixels_are_their_codes():
  grid = quant.pixel_grid(LEVELS, 8)
  np.testing.assert_array_equal(quant.codes(LEVELS.astype(np.float32), grid), LEVELS - 128)
