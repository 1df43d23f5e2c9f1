"""Formats against their definitions in numpy, and what they refuse."""

import jax.numpy as jnp
import numpy as np
import pytest

import quant
from leanax.core.errors import UserError


def test_integers_are_the_codes_of_the_definition():
  x = np.random.default_rng(0).normal(size=500) * 3
  ends, zero_point = quant.limits(4), np.float64(-3)
  u = np.concatenate([x, np.arange(-12, 12) + 0.5])  # ties go to the even number
  codes, inside = quant.formats.integer().encode(jnp.asarray(u, jnp.float32), jnp.float32(zero_point), ends)
  raw = np.round(u.astype(np.float32)) + zero_point
  np.testing.assert_array_equal(codes, np.clip(raw, *ends))
  np.testing.assert_array_equal(inside, (raw >= ends[0]) & (raw <= ends[1]))


def test_powers_of_two_by_hand():
  grid = quant.symmetric(jnp.float32(2.0), 3, format="power_of_two")
  assert grid.levels == (-1, -0.5, -0.25, 0, 0.25, 0.5, 1)
  x = jnp.asarray([-9.0, -1.6, -1.4, 0.2, 0.25, 0.26, 0.75, 0.76, 1.5, 1.51])  # 0.25, 0.75, 1.5: ties to the smaller
  np.testing.assert_array_equal(quant.codes(x, grid), [-3, -3, -2, 0, 0, 1, 1, 2, 2, 3])
  np.testing.assert_array_equal(quant.fake_quant(x, grid), [-2, -2, -1, 0, 0, 0.5, 0.5, 1, 1, 2])


@pytest.mark.parametrize("bits, narrow", [(4, False), (8, True), (16, True)])
def test_powers_of_two_that_no_code_has_are_refused(bits, narrow):
  with pytest.raises(UserError, match="powers of two with the codes .*expected a narrow signed grid of 2 to 7 bits"):
    quant.symmetric(jnp.float32(1.0), bits, narrow=narrow, format="power_of_two")


def test_an_unknown_format_is_named():
  with pytest.raises(UserError, match="did you mean 'power_of_two'"):
    quant.symmetric(jnp.float32(1.0), 4, format="powers_of_two")
