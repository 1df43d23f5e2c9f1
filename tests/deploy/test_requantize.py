import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.deploy import requantize


def test_hand_computed_ties():
  acc = np.array([5, -5, 3, -3, 7])  # times 1/2: 2.5, -2.5, 1.5, -1.5, 3.5
  half = np.array(0.5)
  assert requantize.scaled(acc, half, "float32").tolist() == [2, -2, 2, -2, 4]
  assert requantize.scaled(acc, half, "single").tolist() == [3, -2, 2, -1, 4]
  assert requantize.scaled(acc, half, "double").tolist() == [3, -2, 2, -1, 4]
  assert requantize.scaled(acc, half / 2**5, "double").tolist() == [0, 0, 0, 0, 0]
  assert requantize.scaled(np.array([96, -96]), half / 2**5, "double").tolist() == [2, -2]
  assert requantize.scaled(acc, half, "away").tolist() == [3, -3, 2, -2, 4]


def test_the_second_rounding_shows():
  # 11 / 8 * 1/2^... : 1.4999 is first rounded up to a tie and then once more.
  real, acc = np.array(0.25 * (1 - 2.0**-20)), np.array([6])  # 1.49999857
  assert requantize.scaled(acc, real, "single").tolist() == [1]
  assert requantize.scaled(acc, real, "double").tolist() == [2]


def test_single_is_the_nearest_integer_away_from_ties():
  rng = np.random.default_rng(0)
  acc = rng.integers(-(2**22), 2**22, 20000)
  real = rng.uniform(1e-6, 1.5e-5, 20000)
  exact = acc * real
  clear = np.abs(exact - np.floor(exact) - 0.5) > 1e-5
  for rounding in ("single", "away"):
    assert (requantize.scaled(acc, real, rounding) == np.rint(exact))[clear].all()
  assert np.abs(requantize.scaled(acc, real, "double") - exact).max() < 1.0


@pytest.mark.parametrize("real", [2.0**-20, 1e-3, 0.5, 0.99999999999, 1.0, 1.7, 100.0])
def test_multiplier_is_a_31_bit_fraction(real):
  mantissa, shift = requantize.quantized_multiplier(np.array(real))
  assert 2**30 <= mantissa < 2**31
  assert float(mantissa) * 2.0 ** (int(shift) - 31) == pytest.approx(real, rel=2**-31)


def test_sums_and_means_are_near_the_exact_value():
  rng = np.random.default_rng(1)
  a, b = rng.integers(-255, 256, (2, 5000))
  for s_a, s_b, s_y in ((0.02, 0.05, 0.06), (0.5, 0.001, 0.4)):
    exact = (a * s_a + b * s_b) / s_y
    assert np.abs(requantize.xnnpack_sum(a, b, np.float32(s_a / s_y), np.float32(s_b / s_y)) - exact).max() < 0.5 + 1e-3
    for rounding in ("single", "double"):
      assert np.abs(requantize.litert_sum(a, b, s_a, s_b, s_y, rounding) - exact).max() < 0.5 + 1e-3
  total = rng.integers(-255 * 49, 255 * 49, 5000)
  assert np.abs(requantize.litert_mean(total, 49, 1.3, "single") - total / 49 * 1.3).max() < 0.5 + 1e-3


def test_unknown_rounding_is_named():
  with pytest.raises(UserError, match="did you mean 'float32'"):
    requantize.scaled(np.zeros(1, int), np.array(0.5), "float23")
