"""The percentile observer against numpy's percentiles of all the data."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from leanax.core.errors import UserError
from quant.bins import bin_of, edges
from quant.observers.percentile import percentile


class Range(NamedTuple):
  low: np.ndarray
  high: np.ndarray
  magnitude: np.ndarray


@functools.cache
def compiled(q):
  observer = percentile(q)
  return jax.device_get(observer.init()), jax.jit(observer.update), jax.jit(lambda state: observer.ends(state, 8))


def run(q, batches):
  state, update, ends = compiled(q)
  for x in batches:
    state = update(state, jnp.asarray(x, jnp.float32), None)
  return Range(*map(np.asarray, ends(state)))


@pytest.mark.parametrize("q", [99.99, 99.9, 99.0, 75.0])
@pytest.mark.parametrize("draw", ["normal", "exponential", "standard_cauchy"])
def test_percentiles_are_those_of_all_batches_to_the_width_of_a_bin(q, draw):
  batches = [getattr(np.random.default_rng(seed), draw)(size=(100, 50)) * (seed + 1) for seed in range(4)]
  found, everything = run(q, batches), np.concatenate(batches).astype(np.float32)
  for end, at in ((found.low, 100 - q), (found.high, q)):
    share = 2 / everything.size  # one value more or less beyond the end
    low, high = (np.percentile(everything, np.clip(at + 100 * d, 0, 100)) for d in (-share, share))
    assert low - abs(low) / 32 <= end <= high + abs(high) / 32
  np.testing.assert_allclose(found.magnitude, np.mean(np.abs(everything)), rtol=1e-5)


def test_by_hand():
  # 97 ones and three outliers: at 98 the two largest may go, and the third's bin is taken in part
  x = np.concatenate([np.ones(97), [50.0, 60.0, 70.0]])
  assert run(100.0, [x])[:2] == (1.0, 70.0)
  assert 50 <= run(98.0, [x]).high <= 52 and 1 <= run(97.0, [x]).high <= 1 + 1 / 32
  assert 1 <= run(60.0, [x]).low <= 1 + 1 / 32  # values are taken as spread over their bin


def test_every_number_is_in_its_bin():
  x = np.concatenate([np.geomspace(1.2e-38, 3.4e38, 999), [0.0, -0.0, 1.0, 2.0, np.finfo(np.float32).max]])
  x, ends = np.concatenate([x, -x]).astype(np.float32), edges()
  place = np.asarray(jax.jit(bin_of)(x))
  assert np.all(ends[place] <= x) and np.all(x <= ends[place + 1]) and np.all(np.diff(ends[1:-1]) >= 0)


def test_the_largest_numbers_and_the_empty_state():
  top = np.finfo(np.float32).max
  assert run(99.0, [np.full(10, top)])[:2] == (top, top)
  np.testing.assert_allclose(run(99.0, [np.asarray([-top, top])])[:2], [-top, top], rtol=1 / 32)
  low, high = percentile().range(percentile().init(), 8)
  assert np.isnan(quant.affine(low, high, 8).scale)


def test_a_model_is_calibrated_without_its_outliers():
  rng = np.random.default_rng(0)
  variables = {"w": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)}
  x = rng.uniform(size=(400, 6)).astype(np.float32)
  spoilt = np.array(x)
  spoilt[3, 2] = 1000.0
  scales = {}
  for setting in ("w8a8", "w8a8 percentile(q=99.5)"):
    model = quant.quantize(lambda v, x: x @ v["w"], quant.policy(setting))
    qparams, state = model.init(variables, x)
    state = jax.jit(model.observe)(state, variables, spoilt)[1]
    scales[setting] = model.grids(*model.freeze(qparams, state), variables, x)["input"].scale
  np.testing.assert_allclose(list(scales.values()), [1000 / 255, 1 / 255], rtol=0.03)


@pytest.mark.parametrize("q", [50, 100.1, float("nan"), "99"])
def test_invalid_percentiles_are_refused(q):
  with pytest.raises(UserError, match="percentile: q is .*expected a number above 50 and at most 100"):
    percentile(q)
