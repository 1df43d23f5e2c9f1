"""TQT against equations 4 to 8 of its paper, element by element in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from quant.estimators import Placed
from quant.estimators.base import to_parameter, to_scale
from quant.estimators.tqt import power_of_two, tqt


def oracle(x, log2_t, bits, zero_point, cotangent):
  """Values, and gradients for x and log2 t; an affine grid's n and p are those less its zero point."""
  n, p = -(2 ** (bits - 1)) - zero_point, 2 ** (bits - 1) - 1 - zero_point
  s = 2.0 ** np.ceil(log2_t) / 2 ** (bits - 1)
  rounded = np.round(x / s)
  by_threshold = np.where(rounded < n, n, np.where(rounded > p, p, rounded - x / s))
  return (
    s * np.clip(rounded, n, p),
    cotangent * ((n <= rounded) & (rounded <= p)),
    np.sum(cotangent * s * np.log(2) * by_threshold),
  )


@pytest.mark.parametrize("bits, zero_point", [(2, 0), (4, 0), (4, -8), (8, 0), (8, 37)])
@pytest.mark.parametrize("log2_t", [0.3, -1.7, 2.0])
def test_values_and_gradients_are_the_papers(bits, zero_point, log2_t):
  rng = np.random.default_rng(bits)
  with jax.enable_x64(True):
    x, cotangent = 2 * rng.normal(size=(30, 7)), rng.normal(size=(30, 7))
    limits = quant.limits(bits)

    def by_threshold(x, log2_t):  # what is trained is the natural logarithm of t / 2^(b-1)
      scale = power_of_two(to_scale(jnp.log(2.0) * (log2_t - (bits - 1))))
      return tqt().values(Placed(x, scale, jnp.int32(zero_point), limits, x.size))

    values, pull = jax.vjp(by_threshold, jnp.asarray(x), jnp.float64(log2_t))
    found = values, *pull(jnp.asarray(cotangent))
  for got, want in zip(found, oracle(x, log2_t, bits, zero_point, cotangent), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12 * max(1, np.max(np.abs(want))))


def test_hand_computed():
  # t = 3 gives s = 4 / 8: steps -9, -8.4, 0.6, 7.4, 7.6 on -8..7 round to -8, -8, 1, 7, 7
  with jax.enable_x64(True):
    x = jnp.asarray([-4.5, -4.2, 0.3, 3.7, 3.8])
    values, pull = jax.vjp(lambda x, s: tqt()(x, quant.Grid(s, jnp.int32(0), 4)), x, jnp.float64(3 / 8))
    dx, ds = map(np.asarray, pull(jnp.ones(5)))
  np.testing.assert_array_equal(values, [-4, -4, 0.5, 3.5, 3.5])
  np.testing.assert_array_equal(dx, [0, 1, 1, 1, 0])
  # equation 8 over ln 2, and over t / 2^(b-1), whose logarithm is trained
  np.testing.assert_allclose(ds * 3 / 8, 0.5 * (-8 + 0.4 + 0.4 - 0.4 + 7), rtol=1e-12)


def test_a_power_of_two_survives_its_logarithm():
  powers = jnp.asarray(2.0 ** np.arange(-60, 60), jnp.float32)
  for near in (powers, to_scale(to_parameter(powers)), 0.6 * powers):
    np.testing.assert_array_equal(jax.jit(power_of_two)(near), powers)
  np.testing.assert_array_equal(power_of_two(1.001 * powers), 2 * powers)
  assert np.isnan(power_of_two(jnp.float32(np.nan)))


def test_a_model_lies_on_grids_of_powers_of_two_and_trains_its_thresholds():
  rng = np.random.default_rng(0)
  variables = {"w": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32), "b": jnp.full(4, 0.3, jnp.float32)}
  x = jnp.asarray(rng.normal(size=(9, 6)), jnp.float32)

  def fn(variables, x):
    return jax.nn.relu(x @ variables["w"] + variables["b"])

  model = quant.quantize(fn, quant.policy("w4a4 tqt", ends=None))
  qparams, state = model.init(variables, x)
  qparams, state = model.freeze(qparams, model.observe(state, variables, x)[1])
  grids = model.grids(qparams, state, variables, x)
  assert sorted(qparams) == ["w", "w:out"] and grids["input"].scale != power_of_two(grids["input"].scale)
  for name in qparams:
    np.testing.assert_array_equal(grids[name].scale, power_of_two(grids[name].scale))

  def loss(qparams):
    return jnp.sum(model.apply(qparams, state, variables, x)[0] ** 2)

  placed = {name: {"scale": grids[name].scale} for name in qparams}
  assert np.all(placed["w"]["scale"] >= np.max(np.abs(variables["w"]), 0) / 7 * (1 - 1e-4))  # the range is covered
  gradient = jax.grad(loss)(qparams)
  assert all(np.isfinite(leaf).all() and np.any(leaf != 0) for leaf in gradient.values())
  doubled = jax.tree.map(lambda t: t + np.float32(np.log(2)), qparams)
  again = model.grids(doubled, state, variables, x)
  np.testing.assert_array_equal(again["w"].scale, 2 * grids["w"].scale)
