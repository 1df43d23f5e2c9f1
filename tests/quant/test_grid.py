import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanax.core.errors import UserError
from quant.grid import CHANNEL_FLOOR, WIDTHS, Grid, affine, codes, dequantize, fake_quant, limits, symmetric
from tests.numbers import array


def oracle(x, scale, zero_point, qmin, qmax):
  """Codes in float64, and how far each is from a tie."""
  ratio = np.asarray(x, np.float64) / np.asarray(scale, np.float64)
  return np.clip(np.round(ratio) + zero_point, qmin, qmax), np.abs(np.abs(ratio % 1) - 0.5)


def normal(shape, seed=0, spread=1.0):
  return array(np.random.default_rng(seed).normal(size=shape) * spread, jnp.float32)


def grids(x, bits):
  """Each kind of grid for x (rows, channels)."""
  low, high = jnp.min(x), jnp.max(x)
  return {
    "affine": affine(low, high, bits),
    "unsigned": affine(low, high, bits, signed=False),
    "narrow": symmetric(jnp.max(jnp.abs(x)), bits),
    "full": symmetric(jnp.max(jnp.abs(x)), bits, narrow=False),
    "channels": symmetric(jnp.max(jnp.abs(x), 0), bits, axis=1),
    "affine channels": affine(jnp.min(x, 0), jnp.max(x, 0), bits, axis=1),
  }


KINDS = list(grids(normal((3, 2)), 8))


def test_hand_computed_codes():
  grid = affine(jnp.float32(-1.0), jnp.float32(2.0), 2)  # step 1, codes -2..1, -1 at the lowest
  assert (float(grid.scale), int(grid.zero_point)) == (1.0, -1)
  x = jnp.asarray([-9.0, -1.0, -0.5, 0.0, 0.5, 0.51, 1.5, 2.0, 9.0])
  np.testing.assert_array_equal(codes(x, grid), [-2, -2, -1, -1, -1, 0, 1, 1, 1])
  np.testing.assert_array_equal(fake_quant(x, grid), [-1, -1, 0, 0, 0, 1, 2, 2, 2])


@pytest.mark.sampled(5)
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_battery(kind, bits):
  x = normal((64, 5), seed=bits) + 0.3
  grid = grids(x, bits)[kind]
  y = np.asarray(fake_quant(x, grid))
  scale, zero_point = np.asarray(grid.scale), np.asarray(grid.zero_point)
  q = np.asarray(codes(x, grid))
  expected, from_tie = oracle(x, scale, zero_point, grid.qmin, grid.qmax)
  assert np.all((q == expected) | (from_tie < 1e-2 if bits == 16 else from_tie < 1e-4))
  assert q.min() >= grid.qmin and q.max() <= grid.qmax
  assert max(len(np.unique(y[:, c])) for c in range(5)) <= 2**bits
  np.testing.assert_array_equal(fake_quant(jnp.asarray(y), grid), y)  # idempotent
  np.testing.assert_array_equal(y, dequantize(jnp.asarray(q), grid))  # bitwise the integer codes
  np.testing.assert_array_equal(jax.jit(fake_quant)(x, grid), y)
  np.testing.assert_array_equal(fake_quant(jnp.zeros_like(x), grid), 0)
  inside = (q > grid.qmin) & (q < grid.qmax)
  assert np.all(np.abs(y - np.asarray(x))[inside] <= (scale / 2 * 1.001 + 1e-7 + np.zeros_like(y))[inside])
  order = np.argsort(np.asarray(x), axis=0)
  assert np.all(np.diff(np.take_along_axis(y, order, 0), axis=0) >= 0)  # monotone
  if kind in ("narrow", "channels"):
    np.testing.assert_array_equal(fake_quant(-x, grid), -y)
    assert set(np.abs(q).max(0).tolist() if kind == "channels" else [np.abs(q).max()]) == {grid.qmax}


@settings(deadline=None, max_examples=60)
@given(st.floats(-1e6, 1e6, width=32), st.floats(0, 1e6, width=32), st.sampled_from(WIDTHS))
def test_affine_ranges_hold_zero_and_their_ends(low, length, bits):
  high = low + length
  grid = affine(jnp.float32(low), jnp.float32(high), bits)
  scale, zero_point = float(grid.scale), int(grid.zero_point)
  assert scale > 0 and grid.qmin <= zero_point <= grid.qmax
  assert float(fake_quant(jnp.zeros(1), grid)[0]) == 0
  lowest, highest = scale * (grid.qmin - zero_point), scale * (grid.qmax - zero_point)
  slack = scale * (0.51 if bits < 16 else 1.01)
  assert lowest <= min(low, 0) + slack and highest >= max(high, 0) - slack
  if low >= 0:
    assert zero_point == grid.qmin


def test_the_gradient_is_the_mask_of_the_rounded_code():
  with jax.enable_x64(True):
    x = np.random.default_rng(1).normal(size=(40, 3)) * 2
    weight = np.random.default_rng(2).normal(size=x.shape)
    grid = affine(jnp.float64(-1.3), jnp.float64(2.1), 4)
    found = jax.grad(lambda v: jnp.sum(fake_quant(v, grid) * weight))(jnp.asarray(x))
    code = np.round(x / float(grid.scale)) + int(grid.zero_point)
    expected = weight * ((code >= grid.qmin) & (code <= grid.qmax))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert 0 < np.mean(expected == 0) < 1


def test_the_largest_weight_of_each_channel_keeps_its_gradient():
  x = normal((50, 200))
  grid = symmetric(jnp.max(jnp.abs(x), 0), 8, axis=1)
  np.testing.assert_array_equal(jax.grad(lambda v: jnp.sum(fake_quant(v, grid)))(x), jnp.ones_like(x))


def test_the_grid_receives_no_gradient():
  grid = affine(jnp.float32(-1), jnp.float32(1), 8)
  x = normal((9,))
  found = jax.grad(lambda scale: jnp.sum(fake_quant(x, Grid(scale, grid.zero_point, 8))))(grid.scale)
  assert float(found) == 0


def test_types_are_kept():
  grid = affine(jnp.float32(-1), jnp.float32(1), 8)
  assert fake_quant(normal((4,)).astype(jnp.bfloat16), grid).dtype == jnp.bfloat16
  assert codes(normal((4,)), grid).dtype == jnp.int32
  assert dequantize(jnp.zeros(3, jnp.int8), grid, jnp.bfloat16).dtype == jnp.bfloat16


def test_dead_channels_have_a_step_in_proportion_and_empty_ranges_are_served():
  grid = symmetric(jnp.asarray([127.0, 0.0, 1e-20]), 8, axis=1)
  np.testing.assert_allclose(grid.scale, [1, 1 / 127, CHANNEL_FLOOR], rtol=1e-6)
  np.testing.assert_array_equal(fake_quant(jnp.zeros((2, 3)), symmetric(jnp.zeros(3), 8, axis=1)), 0)
  for low, high in ((0, 0), (0, 1e-45), (-3e38, 0)):
    assert np.isfinite(fake_quant(jnp.ones(2), affine(jnp.float32(low), jnp.float32(high), 8))).all()


def test_axes_of_kernels():
  def rounded(x, axis):
    """By the axis, by the same axis counted from the end, and moved to the end."""
    largest = jnp.max(jnp.abs(x), tuple(a for a in range(4) if a != axis))
    grid, back, last = (symmetric(largest, 8, axis=place) for place in (axis, axis - 4, 3))
    return fake_quant(x, grid), fake_quant(x, back), jnp.moveaxis(fake_quant(jnp.moveaxis(x, axis, 3), last), 3, axis)

  for found, back, expected in jax.jit(lambda x: [rounded(x, axis) for axis in range(4)])(normal((3, 3, 4, 6))):
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(back, expected)


def test_vmap_is_a_loop():
  x = normal((4, 10, 3))
  grid = affine(jnp.min(x, (1, 2)), jnp.max(x, (1, 2)), 4)
  found = jax.vmap(fake_quant)(x, grid)
  for i in range(4):
    one = Grid(grid.scale[i], grid.zero_point[i], 4)
    np.testing.assert_array_equal(found[i], fake_quant(x[i], one))


def test_limits_and_mistakes():
  assert limits(8, True, True) == (-127, 127) and limits(4, False) == (0, 15) and limits(16) == (-32768, 32767)
  with pytest.raises(UserError, match="a grid of 9 bits is not served"):
    limits(9)
  with pytest.raises(UserError, match="no narrow range"):
    limits(8, False, True)
  with pytest.raises(UserError, match="needs the axis"):
    fake_quant(jnp.ones((2, 3)), symmetric(jnp.ones(3), 8))


def test_a_width_is_a_whole_number():
  for bits in ("8", True, 8.0):
    with pytest.raises(UserError, match=f"a grid of {bits!r} bits is not served"):
      limits(bits)
  assert limits(np.int64(4)) == (-8, 7)


def test_values_without_a_code_are_refused():
  grid = symmetric(jnp.ones(()), 8)
  with pytest.raises(UserError, match="the array holds NaN"):
    codes(jnp.asarray([1.0, np.nan]), grid)
  with pytest.raises(UserError, match="the grid's scale holds NaN"):
    codes(jnp.ones(2), symmetric(jnp.full((), jnp.nan), 8))
  with pytest.raises(UserError, match="codes of an array of int32; expected floats"):
    codes(jnp.ones(2, jnp.int32), grid)
  with pytest.raises(UserError, match="scales of shape \\(3,\\) along 0 was given the shape \\(2, 3\\)"):
    codes(jnp.ones((2, 3)), symmetric(jnp.ones(3), 8, axis=0))
  np.testing.assert_array_equal(codes(jnp.asarray([-np.inf, np.inf]), grid), [-127, 127])
  np.testing.assert_array_equal(codes([0.5, -2.0], grid), [64, -127])


def test_an_invalid_range_gives_nan():
  assert np.isnan(affine(jnp.float32(2), jnp.float32(-1), 8).scale)
  assert np.isnan(affine(jnp.float32(-1), jnp.float32(-2), 8).scale)
  assert np.isnan(symmetric(jnp.float32(-1), 8).scale)
  assert affine(jnp.float32(-1), jnp.float32(-1), 8).scale == np.float32(1 / 255)


def test_whole_numbers_are_not_rounded_to_a_grid():
  for use in (fake_quant, codes):
    with pytest.raises(UserError, match="array of int32; expected floats"):
      use(jnp.arange(3), symmetric(jnp.asarray(1.0), 8))
