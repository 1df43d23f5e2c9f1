"""The observer of least squared error against a search over all pairs of shares, on the data itself in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from quant.observers.mse import mse

SHARES = 1 - np.arange(100) / 100


OBSERVER = mse()
update, ends = jax.jit(OBSERVER.update), jax.jit(OBSERVER.ends, static_argnums=1)


def run(batches, bits):
  state = jax.device_get(OBSERVER.init())
  for x in batches:
    state = update(state, jnp.asarray(x, jnp.float32), None)
  return tuple(map(float, ends(state, bits)[:2]))


def error(x, low, high, bits):
  """The squared error of rounding to the affine grid over [low, high] and 0."""
  low, high = min(low, 0.0), max(high, 0.0)
  scale, qmin, qmax = (high - low) / (2**bits - 1), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
  zero_point = np.clip(qmin - np.round(low / scale), qmin, qmax)
  return np.sum((x - scale * (np.clip(np.round(x / scale) + zero_point, qmin, qmax) - zero_point)) ** 2)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("draw", ["normal", "laplace", "exponential", "standard_cauchy"])
def test_no_pair_of_shares_is_much_better_and_min_max_is_worse(draw, bits):
  batches = [getattr(np.random.default_rng(seed), draw)(size=(20, 50)).astype(np.float32) for seed in range(3)]
  x = np.concatenate(batches).astype(np.float64)
  low, high = run(batches, bits)
  assert x.min() <= low <= high <= x.max()
  lows = [0.0] if x.min() >= 0 else SHARES[::5] * x.min()
  least = min(error(x, a, b, bits) for a in lows for b in SHARES[::3] * x.max())
  assert error(x, low, high, bits) <= min(1.1 * least, 1.02 * error(x, x.min(), x.max(), bits))


def test_by_hand():
  # At 2 bits four levels hold 0, 1, 2, 3. One 30 costs (30 - 3)^2 = 729; a step of 10 would cost the others 14,000.
  x = np.concatenate([np.repeat([0.0, 1.0, 2.0, 3.0], 1000), [30.0]])
  assert run([x], 2) == (0.0, pytest.approx(3.0))
  assert run([-x], 2) == (pytest.approx(-3.0), 0.0)


@pytest.mark.parametrize("outliers", [10, 100])
def test_one_end_may_be_cut_alone(outliers):
  """One share for both ends is 10 and 18 % worse."""
  x = np.concatenate([np.random.default_rng(3).normal(size=3000), np.full(outliers, 10.0)]).astype(np.float32)
  for one in (x, -x):
    low, high = run([one], 4)
    least = min(error(np.float64(one), a, b, 4) for a in SHARES * one.min() for b in SHARES * one.max())
    assert error(np.float64(one), low, high, 4) <= 1.01 * least


def test_at_16_bits_it_is_min_max():
  x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
  assert run([x], 16) == (x.min(), x.max())


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_a_scale_does_not_matter(factor):
  x = np.random.default_rng(1).standard_cauchy(size=2000).clip(-99, 99).astype(np.float32)
  np.testing.assert_allclose(run([factor * x], 4), factor * np.asarray(run([x], 4)), rtol=0.02)


def test_zeros_nothing_and_what_is_not_finite():
  assert run([np.zeros(5)], 8) == (0.0, 0.0)
  assert np.isnan(jax.jit(lambda state: quant.affine(*OBSERVER.range(state, 8), 8).scale)(OBSERVER.init()))
  for bad in (np.nan, np.inf, -np.inf):
    assert np.all(np.isnan(run([[0.1, bad]], 8)))


def test_a_model_is_calibrated_without_its_outlier():
  rng = np.random.default_rng(0)
  variables = {"w": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)}
  x = rng.uniform(size=(400, 6))
  x[3, 2] = 20.0
  model = quant.quantize(lambda v, x: x @ v["w"], quant.policy("w8a4 mse", ends=None))
  qparams, state = model.init(variables, jnp.asarray(x, jnp.float32))
  state = jax.jit(model.observe)(state, variables, jnp.asarray(x, jnp.float32))[1]
  scale = float(model.grids(*model.freeze(qparams, state), variables, jnp.asarray(x, jnp.float32))["input"].scale)
  assert error(x, 0, 15 * scale, 4) < 0.6 * error(x, 0, 20.0, 4)
