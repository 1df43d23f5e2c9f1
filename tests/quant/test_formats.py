"""Formats against their definitions in numpy, and what they refuse."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import quant
from leanax.core.errors import UserError
from tests.numbers import array


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


def test_fp8_by_hand():
  """At the scale 1: 17 lies between 16 and 18, 0.6 * 2^-9 nearest 2^-9, and 449 beyond the largest level."""
  grid = quant.symmetric(jnp.float32(448.0), 8, format="fp8_e4m3")
  x = jnp.asarray([0.0, 0.6 * 2.0**-9, 2.0**-10, 1.0, 1.0625, 1.1875, 17.0, -17.1, 447.0, 449.0, -1e30])
  np.testing.assert_array_equal(quant.codes(x, grid), [0, 1, 0, 56, 56, 58, 88, -89, 126, 126, -126])
  np.testing.assert_array_equal(quant.fake_quant(x, grid), [0, 2.0**-9, 0, 1, 1, 1.25, 16, -18, 448, 448, -448])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_fp8_is_that_of_ml_dtypes(dtype):
  """All middles of two levels among them, which go to the even one, and every level."""
  levels = np.asarray(quant.symmetric(jnp.float32(1.0), 8, format="fp8_e4m3").levels)
  floats = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
  np.testing.assert_array_equal(levels, np.concatenate([-floats[:0:-1], floats]))
  rng = np.random.default_rng(0)
  u = np.concatenate([levels, (levels[1:] + levels[:-1]) / 2, 448 * rng.uniform(-1, 1, 999), rng.normal(size=999)])
  with jax.enable_x64(True):
    u = jnp.asarray(u, dtype)
    codes, inside = quant.formats.fp8_e4m3().encode(u, jnp.zeros((), dtype), (-127, 127))
    decoded = quant.formats.fp8_e4m3().decode(codes, jnp.zeros((), dtype), (-127, 127))
  want = np.asarray(u, np.float64).astype(ml_dtypes.float8_e4m3fn)
  np.testing.assert_array_equal(np.asarray(decoded, np.float64), want.astype(np.float64))
  np.testing.assert_array_equal(np.abs(np.asarray(codes, np.float64)), want.view(np.uint8) & 127)
  assert np.all(inside) and codes.dtype == decoded.dtype == dtype


def test_fp8_of_what_is_not_finite():
  grid = quant.symmetric(jnp.float32(448.0), 8, format="fp8_e4m3")
  np.testing.assert_array_equal(
    jax.jit(quant.fake_quant)(jnp.asarray([np.nan, np.inf, -np.inf]), grid), [np.nan, 448, -448]
  )


def test_an_unknown_format_is_named():
  with pytest.raises(UserError, match="did you mean 'power_of_two'"):
    quant.symmetric(jnp.float32(1.0), 4, format="powers_of_two")


def data(shape, seed):
  return array(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_a_kernel_of_powers_of_two_in_a_model():
  """Its values are those of `fake_quant`, and so are its gradients; the ends of the model are integers."""
  variables, x = {"a": data((6, 5), 0), "b": data((5, 5), 1), "c": data((5, 3), 2), "d": data(5, 3)}, data((9, 6), 4)

  def fn(v, x, rounded=lambda name, leaf: leaf):
    x = jax.nn.relu(x @ rounded("a", v["a"]))
    x = jax.nn.relu(x @ rounded("b", v["b"]) + v["d"])
    return x @ rounded("c", v["c"])

  model = quant.quantize(fn, "w4 power_of_two")
  qparams, state = model.init(variables, x)
  explained, grids = model.explain(variables, x), model.grids(qparams, state, variables, x)
  assert {n: str(explained[n].setting) for n in "abc"} == {"a": "w8", "b": "w4 power_of_two", "c": "w8"}
  assert {n: grids[n].format for n in "abc"} == {"a": "integer", "b": "power_of_two", "c": "integer"}
  np.testing.assert_allclose(grids["b"].scale, np.max(np.abs(variables["b"]), 0), rtol=1e-6)

  def by_hand(v):
    return fn(v, x, lambda name, leaf: quant.fake_quant(leaf, grids[name]))

  found, pull = jax.vjp(lambda v: model.apply(qparams, state, v, x)[0], variables)
  expected, pull_by_hand = jax.vjp(by_hand, variables)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  one, other = pull(jnp.ones_like(found))[0], pull_by_hand(jnp.ones_like(found))[0]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), one, other)


def test_with_integer_activations_the_product_is_one_of_floats_and_the_bias_stays():
  variables, x = {"w": data((6, 5), 0), "d": data(5, 3)}, data((9, 6), 4)
  model = quant.quantize(lambda v, x: x @ v["w"] + v["d"], quant.policy("w4a8 power_of_two", ends=None))
  qparams, state = model.init(variables, x)
  grids = model.grids(qparams, state, variables, x)
  rounded = {name: quant.fake_quant(v, grids[name]) for name, v in (("w", variables["w"]), ("input", x))}
  expected = quant.fake_quant(rounded["input"] @ rounded["w"] + variables["d"], grids["w:out"])
  found = model.apply(qparams, state, variables, x)[0]
  np.testing.assert_allclose(found, expected, atol=float(grids["w:out"].scale) * 1.01)
  assert np.mean(np.abs(found - expected) < 1e-5) > 0.95  # but for ties


@pytest.mark.parametrize(
  "spec, sentence",
  [
    ("w4 power_of_two learned", "the estimator 'lsq' serves integer grids, and not 'power_of_two'"),
    ("w8 power_of_two", "expected a narrow signed grid of 2 to 7 bits"),
    ("w4 full power_of_two", "expected a narrow signed grid"),
    ("w4 fp8_e4m3", "fp8_e4m3 with the codes -7 to 7; expected a narrow signed grid of 8 bits"),
    ("w4 powers_of_two", "did you mean 'power_of_two'"),
    ({"weights": 4, "format": "integers"}, "did you mean 'integer'"),
  ],
)
def test_settings_that_no_grid_has_are_refused(spec, sentence):
  with pytest.raises(UserError, match=sentence):
    quant.parse(spec)


@pytest.mark.parametrize(
  "text", ["w4 power_of_two", "w8 fp8_e4m3", "w4a8 power_of_two per_tensor", "w4a8 tqt", "w4a8 percentile(q=99.9)"]
)
def test_a_setting_prints_as_it_is_read(text):
  assert str(quant.parse(text)) == text
