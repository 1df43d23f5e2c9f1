"""Calibration: branches, NaN, and operations that never ran."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.core.methods import methods
from quant import observers
from quant.grid import affine, symmetric
from quant.policy import policy
from quant.quantize import quantize
from tests.numbers import array


def data(shape, seed=0):
  return array(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def decibels(exact, found):
  exact = np.asarray(exact, np.float64)
  return 10 * np.log10(np.sum(exact**2) / np.sum((exact - np.asarray(found, np.float64)) ** 2))


def calibrated(fn, variables, batches, spec="w8a8"):
  return calibrate(quantize(fn, spec), variables, batches)


def calibrate(model, variables, batches):
  qparams, state = model.init(variables, batches[0])
  for x in batches:
    _, state = jax.jit(model.observe)(state, variables, x)
  return model, *model.freeze(qparams, state, variables)


X = data((16, 4), 3)
POSITIVE, NEGATIVE = jnp.abs(X), -jnp.abs(X)
PAIR = {"a": data((4, 5), 1), "b": data((4, 5), 2)}
LAYERS = {"w": data((3, 4, 4)) / 2, "u": data((3, 4, 4), 6) / 2}


def either(v, x):
  return jax.lax.cond(x.sum() > 0, lambda: x @ v["a"], lambda: x @ v["b"])


def nested(v, x):
  """Branches in branches; each reads the same tensor, and so does what follows."""
  h = jnp.tanh(x @ v["a"])
  case = (x.sum() > 0).astype(jnp.int32) + (x.sum() > 30).astype(jnp.int32)
  last = lambda: jax.lax.cond(x[0, 0] > 0, lambda: h @ v["d"], lambda: h @ v["e"])
  return jax.lax.switch(case, [lambda: h @ v["c"], lambda: 2.0 * (h @ v["c"]), last])


def twice(v, x):
  """Two branches one after the other that read one tensor, of which both may run."""
  one = jax.lax.cond(x.sum() > 0, lambda: x @ v["a"], lambda: jnp.zeros((x.shape[0], 5)))
  return one + jax.lax.cond(x.max() > 0, lambda: x @ v["b"], lambda: jnp.ones((x.shape[0], 5)))


def scanned(v, x):
  def layer(x, wu):
    w, u = wu
    return jax.lax.cond(x.sum() > 0, lambda: jnp.tanh(x @ w), lambda: jnp.tanh(x @ u) + 0.3 * x), None

  return jax.lax.scan(layer, x, (v["w"], v["u"]))[0]


NESTED = {**PAIR, "c": data((5, 3)), "d": data((5, 3), 4), "e": data((5, 3), 5)}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("spec", ["w8a8", "w8a8 learned"])
@pytest.mark.parametrize(
  "fn, variables, batches",
  [
    (either, PAIR, [POSITIVE, NEGATIVE]),
    (either, PAIR, [NEGATIVE, POSITIVE]),
    (nested, NESTED, [NEGATIVE, 0.5 * POSITIVE, POSITIVE, POSITIVE.at[0, 0].set(-1.0)]),
    (scanned, LAYERS, [POSITIVE, NEGATIVE, X, -X]),
  ],
  ids=["either", "either the other way", "nested", "scanned"],
)
def test_branches_are_quantized_whichever_ran_first(fn, variables, batches, spec):
  model, qparams, state = calibrated(fn, variables, batches, spec)
  run = jax.jit(lambda q, s, v, x: (fn(v, x), model.apply(q, s, v, x)[0]))
  for x in batches:
    assert decibels(*run(qparams, state, variables, x)) > 25


def test_the_range_is_that_of_all_batches_whatever_branch_they_took():
  model = quantize(either, "w8a8 ema(rate=0.25)")
  _, state = model.init(PAIR, POSITIVE)
  low, high = [], []
  for x in (2 * POSITIVE, NEGATIVE, POSITIVE):
    _, state = jax.jit(model.observe)(state, PAIR, x)
    low.append(float(x.min())), high.append(float(x.max()))
  for ends, found in zip((low, high), state["input"]["stats"]["moving_extrema"], strict=True):
    mean = ends[0]
    for end in ends[1:]:
      mean += 0.25 * (end - mean)
    np.testing.assert_allclose(found, mean, rtol=1e-5)


def test_a_tensor_that_two_branches_read_in_one_batch_is_observed_once():
  model = quantize(twice, "w8a8 ema(rate=0.25)")
  _, state = model.init(PAIR, POSITIVE)
  for x in (POSITIVE, X - 1.0, 2 * POSITIVE):
    _, state = jax.jit(model.observe)(state, PAIR, x)
  assert int(state["input"]["stats"]["batches"].count) == 3
  mean = float(POSITIVE.max())
  for x in (X - 1.0, 2 * POSITIVE):
    mean += 0.25 * (float(x.max()) - mean)
  np.testing.assert_allclose(state["input"]["stats"]["moving_extrema"].high, mean, rtol=1e-5)


def test_a_branch_that_never_ran_is_refused_by_name():
  with pytest.raises(UserError, match="'b' was never seen by calibration"):
    calibrated(either, PAIR, [POSITIVE])
  model = quantize(either, "w8a8")
  qparams, state = model.init(PAIR, POSITIVE)
  with pytest.raises(UserError, match="'b' was never seen by calibration"):
    model.apply(qparams, state, PAIR, NEGATIVE)
  traced = jax.jit(lambda q, s, x: model.apply(*model.freeze(q, s), PAIR, x)[0])
  assert np.all(np.isnan(traced(qparams, state, NEGATIVE)))  # and never numbers of a scale that nobody measured
  assert decibels(either(PAIR, POSITIVE), traced(qparams, state, POSITIVE)) > 30
  left = {"b": "float", "*": "w8a8"}
  model, qparams, state = calibrated(either, PAIR, [POSITIVE], policy(left))
  found = jax.jit(model.apply)(qparams, state, PAIR, NEGATIVE)[0]
  assert decibels(either(PAIR, NEGATIVE), found) < 30  # clipped, not NaN


MLP = {"a": data((4, 5), 1), "c": data((5, 3))}


def mlp(v, x):
  return jax.nn.relu(x @ v["a"]) @ v["c"]


quantized_mlp = functools.cache(lambda spec: quantize(mlp, spec))  # its programs serve every bad number


@pytest.mark.sampled(4)
@pytest.mark.parametrize("bad", [np.nan, pytest.param(np.inf, marks=pytest.mark.slow), -np.inf])
@pytest.mark.parametrize("observer", sorted(methods(observers)))
def test_nan_in_calibration_is_refused_with_its_tensor_and_batch(observer, bad):
  spoilt = X.at[3, 1].set(bad)
  with pytest.raises(UserError, match="batch 3 of the calibration holds NaN or infinity in 'input', 'a:out'"):
    calibrate(quantized_mlp(f"w8a8 {observer}"), MLP, [X, X, spoilt, X, spoilt, X])
  with pytest.raises(UserError, match="batch 1 of the calibration holds NaN or infinity"):
    quantized_mlp(f"w8a8 learned {observer}").init(MLP, spoilt)


@pytest.mark.parametrize("spec", ["w8a8", "w4a4 learned"])
def test_inside_jit_nan_in_calibration_gives_nan(spec):
  model = quantize(mlp, spec)
  qparams, state = model.init(MLP, X)

  @jax.jit
  def run(qparams, state, bad):
    for x in (X, bad, X):
      _, state = model.observe(state, MLP, x)
    qparams, state = model.freeze(qparams, state)
    return model.apply(qparams, state, MLP, X)[0]

  assert np.all(np.isnan(run(qparams, state, X.at[0, 0].set(jnp.nan))))
  assert np.all(np.isfinite(run(qparams, state, X)))


def test_a_kernel_of_nan_is_refused_by_name():
  spoilt = {**MLP, "a": MLP["a"].at[0, 0].set(jnp.nan)}
  with pytest.raises(UserError, match="the kernel 'a' holds NaN or infinity"):
    calibrated(mlp, spoilt, [X])


def test_an_empty_batch_is_refused():
  with pytest.raises(UserError, match=r"'input' has the shape \(0, 4\)"):
    calibrated(mlp, MLP, [X[:0]])


def test_grids_of_nan_are_nan():
  for bad in (jnp.nan, jnp.inf):
    assert np.isnan(affine(jnp.float32(-1), jnp.float32(bad), 8).scale)
    assert np.isnan(symmetric(jnp.float32(bad), 8).scale)
  assert float(affine(jnp.float32(0), jnp.float32(0), 8).scale) == np.float32(1 / 255)


def pools(v, x):
  """The first reader sees the largest of each window: nothing as low as what the last one reads."""
  large = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 4, 4, 1), (1, 1, 1, 1), "SAME")
  small = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 1, 1), (1, 1, 1, 1), "SAME")
  return large, small, x


@pytest.mark.sampled(4)
@pytest.mark.parametrize("spec", ["w8a8", "w8a8 learned"])
@pytest.mark.parametrize("read", [(0, 2), (0, 1), (2, 0), (0, 1, 2)])
def test_a_tensor_is_observed_before_its_pools(read, spec):
  def fn(v, x):
    made = pools(v, x)
    return jnp.concatenate([made[i] @ v["w"] for i in read], -1)

  v, x = {"w": data((3, 4))}, data((4, 6, 6, 3), 7)
  model, qparams, state = calibrated(fn, v, [x], spec)
  run = jax.jit(lambda q, s, v, x: (fn(v, x), model.apply(q, s, v, x)[0]))
  assert decibels(*run(qparams, state, v, x)) > 30
