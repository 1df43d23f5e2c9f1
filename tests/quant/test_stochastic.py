"""Stochastic rounding: right in the mean, one of the two neighbours, and nearest without a key."""

import jax
import jax.numpy as jnp
import numpy as np

import quant
from leanax import graph
from leanax.engine.train import forward

KEY = jax.random.key(3)


def test_values_are_neighbours_whose_mean_is_the_number():
  grid = quant.Grid(jnp.float32(0.5), jnp.int32(0), 4)
  x = jnp.asarray([-3.9, -1.3, -0.1, 0.0, 0.2, 1.5, 3.4, 9.0])
  found = np.asarray(
    jax.vmap(lambda key: quant.stochastic()(x, grid, key=key))(jax.random.split(KEY, 20000)), np.float64
  )
  inside = np.clip(np.asarray(x, np.float64), -4, 3.5)
  assert set(np.unique(found[:, 1])) == {-1.5, -1.0} and np.all(found[:, 3] == 0)
  np.testing.assert_allclose(found.mean(0), inside, atol=4 * 0.25 / np.sqrt(20000))
  np.testing.assert_array_equal(quant.stochastic()(x, grid), quant.fake_quant(x, grid))
  gradient = jax.grad(lambda x: quant.stochastic()(x, grid, key=KEY).sum())(x)
  np.testing.assert_array_equal(gradient, [1, 1, 1, 1, 1, 1, 1, 0])


def stacked(v, x):
  return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, v["w"])[0]


V = {"w": jnp.stack([jnp.eye(8) * 0.3 + 0.05] * 2)}
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)), jnp.float32)


def test_a_model_is_rounded_at_random_in_training_only():
  model = quant.quantize(stacked, quant.policy("w3a8 stochastic", ends=None))
  qparams, state = model.init(V, X)
  nearest = model.apply(qparams, state, V, X)[0]
  run = jax.jit(lambda key: model.apply(qparams, state, V, X, key=key)[0])
  outs = [run(key) for key in jax.random.split(KEY, 3)]
  assert not np.array_equal(outs[0], outs[1]) and not np.array_equal(outs[0], nearest)
  np.testing.assert_array_equal(run(KEY), run(KEY))
  edit = quant.edit.data(quant.policy("w3a8 stochastic", ends=None))
  run = forward.plain(graph.net(stacked, V, X).edited([edit], None, quant.edit.KIND).apply)
  for train in (False, True):
    found, _, _ = run(V, qparams, state, X, train=train, key=KEY, axis_name=None)
    assert np.array_equal(found, nearest) == (not train)


def test_layers_of_a_scan_have_keys_of_their_own():
  """Equal layers on equal inputs are rounded differently."""
  model = quant.quantize(
    lambda v, x: jax.lax.scan(lambda x, w: (x, x @ w), x, v["w"])[1], quant.policy("w3 stochastic", ends=None)
  )
  qparams, state = model.init(V, X)
  first, second = model.apply(qparams, state, V, X, key=KEY)[0]
  assert not np.array_equal(first, second)
  first, second = model.apply(qparams, state, V, X)[0]
  np.testing.assert_array_equal(first, second)


def test_other_estimators_read_no_key():
  """Their programs are the same to the letter."""
  model = quant.quantize(stacked, "w8a8 learned")
  qparams, state = model.init(V, X)
  texts = [
    jax.jit(lambda q, x, key, given=given: model.apply(q, state, V, x, key=key if given else None)[0])
    .lower(qparams, X, KEY)
    .as_text()
    for given in (True, False)
  ]
  assert texts[0] == texts[1]
