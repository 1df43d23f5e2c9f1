"""Soft thresholds against float64 numpy, and trained in a plain optax loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsity
from leanax.core.errors import UserError
from sparsity.reparam import soft_threshold
from tests.sparsity import nets


def sigmoid(s):
  return 1 / (1 + np.exp(-np.asarray(s, np.float64)))


def shrink(w, s):
  """Equation 4 of the paper."""
  w = np.asarray(w, np.float64)
  return np.sign(w) * np.maximum(np.abs(w) - sigmoid(s), 0)


def forward(reparam, params, aux, train=True):
  return reparam.forward(params, aux, step=jnp.int32(0), key=jax.random.key(0), train=train)[0]


def test_worked_case():
  w = {"kernel": jnp.array([[2.0, -0.25], [-1.0, 0.5]]), "bias": jnp.array([0.1])}
  reparam = soft_threshold(initial=0.0)  # sigmoid(0) = 1/2; an entry on the threshold is pruned
  out = forward(reparam, w, reparam.init(w))
  np.testing.assert_array_equal(out["kernel"], [[1.5, 0.0], [-0.5, 0.0]])
  assert not np.any(np.signbit(np.asarray(out["kernel"]))[:, 1]) and out["bias"] is w["bias"]


def test_values_and_gradients_in_float64():
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    w, weights = (jnp.asarray(rng.normal(size=(5, 6))) for _ in range(2))
    reparam = soft_threshold(initial=-0.7, decay=0.3)
    aux = reparam.init({"kernel": w})

    def loss(params, aux):
      return jnp.sum(weights * jnp.sin(forward(reparam, params, aux)["kernel"])) + reparam.penalty(aux)

    def oracle(w, s):
      return np.sum(np.asarray(weights) * np.sin(shrink(w, s))) + 0.5 * 0.3 * s**2

    value, (by_w, by_s) = jax.value_and_grad(loss, (0, 1))({"kernel": w}, aux)
    assert float(value) == pytest.approx(oracle(w, -0.7), rel=1e-12)
    # d/dW is 1 where |W| > g(s), d/ds is -sign(W) g'(s) there.
    kept, g = np.abs(np.asarray(w)) > sigmoid(-0.7), np.asarray(weights) * np.cos(shrink(w, -0.7))
    np.testing.assert_allclose(by_w["kernel"], np.where(kept, g, 0), rtol=1e-12)
    slope = sigmoid(-0.7) * (1 - sigmoid(-0.7))
    want = -slope * np.sum(np.sign(w) * kept * g) + 0.3 * -0.7
    np.testing.assert_allclose(float(by_s["kernel"]), want, rtol=1e-12)
    difference = (oracle(w, -0.7 + 1e-6) - oracle(w, -0.7 - 1e-6)) / 2e-6
    np.testing.assert_allclose(float(by_s["kernel"]), difference, rtol=1e-6)


def test_a_threshold_for_each_layer_of_a_leaf():
  w = {"blocks": {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 5)), jnp.float32)}}
  reparam = soft_threshold(stacked=[("blocks/*", 1)])
  aux = reparam.init(w)
  assert aux["blocks/kernel"].shape == (1, 3, 1)
  s = jnp.array([-20.0, 0.0, 20.0]).reshape(1, 3, 1)
  got = forward(reparam, w, {"blocks/kernel": s})["blocks"]["kernel"]
  np.testing.assert_allclose(got, shrink(w["blocks"]["kernel"], s), rtol=1e-6, atol=1e-7)


def test_rules_choose_leaves_and_their_starts():
  tree = {"params": nets.params(), "batch_stats": {"kernel": jnp.ones(3)}}
  aux = soft_threshold(rules=[("Conv_0/kernel", -3.0), ("Dense_0/bias", False), ("Dense_0/*", True)]).init(tree)
  assert {name: float(s) for name, s in aux.items()} == {"Conv_0/kernel": -3.0, "Dense_0/kernel": -10.0}


def trained(reparam, steps=300):
  """A linear regression of which 4 of 40 inputs count, by Adam on weights and thresholds together."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(200, 40)), jnp.float32)
  y = x[:, :4] @ jnp.asarray(rng.uniform(1, 2, size=(4, 3)) * rng.choice([-1, 1], size=(4, 3)), jnp.float32)
  params = {"kernel": jnp.asarray(0.3 * rng.normal(size=(40, 3)), jnp.float32), "bias": jnp.zeros(3)}
  tx = optax.adam(0.03)

  def loss_fn(trained, step):
    params, aux = trained
    params, _ = reparam.forward(params, aux, step=step, key=jax.random.key(0), train=True)
    return jnp.mean((x @ params["kernel"] + params["bias"] - y) ** 2) + reparam.penalty(aux)

  @jax.jit
  def update(trained, state, step):
    loss, gradients = jax.value_and_grad(loss_fn)(trained, step)
    updates, state = tx.update(gradients, state)
    return optax.apply_updates(trained, updates), state, loss

  both = (params, reparam.init(params))
  state = tx.init(both)
  with jax.numpy_dtype_promotion("standard"):
    for step in range(steps):
      both, state, _ = update(both, state, jnp.int32(step))
  params = forward(reparam, *both, train=False)
  return params, float(jnp.mean((x @ params["kernel"] + params["bias"] - y) ** 2)), both


def test_a_plain_optax_loop_finds_the_sparse_weights():
  params, error, (_, aux) = trained(soft_threshold(initial=-6.0, decay=1e-3))
  kernel = np.asarray(params["kernel"])
  assert np.all(kernel[:4] != 0) and np.mean(kernel[4:] != 0) < 0.15 and error < 0.01
  assert float(aux["kernel"]) > -6.0
  assert sparsity.summary(params, None)["kernel"].nonzero == np.sum(kernel != 0)


def test_the_more_decay_the_sparser():
  kept = [np.mean(np.asarray(trained(soft_threshold(-4.0, decay), 60)[0]["kernel"]) != 0) for decay in (0.0, 1e-3, 0.1)]
  assert kept[0] >= kept[1] >= kept[2] and kept[0] > kept[2]


def test_of_nnx_and_in_half_precision():
  state = nnx.state(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), nnx.Param)
  reparam = soft_threshold(initial=-1.0)
  out = forward(reparam, state, reparam.init(state))
  np.testing.assert_allclose(out["kernel"][...], shrink(state["kernel"][...], -1.0), rtol=1e-5, atol=1e-6)
  assert jax.tree.structure(out) == jax.tree.structure(state)
  tree = jax.tree.map(lambda x: x.astype(jnp.bfloat16), nets.params())
  assert forward(reparam, tree, reparam.init(tree))["Dense_0"]["kernel"].dtype == jnp.bfloat16


def test_mistakes():
  with pytest.raises(UserError, match="soft_threshold: initial is nan; expected a finite number"):
    soft_threshold(float("nan"))
  with pytest.raises(UserError, match="soft_threshold: decay is -1; expected a number, 0 or more"):
    soft_threshold(decay=-1)
  with pytest.raises(UserError, match="'Dense_9/kernel' matches nothing"):
    soft_threshold(rules=[("Dense_9/kernel", True)]).init(nets.params())
  with pytest.raises(UserError, match="soft_threshold: aux has no threshold of 'Conv_0/kernel'"):
    forward(soft_threshold(), nets.params(), {})
  nothing = soft_threshold(decay=1.0, rules=[("*", False)])
  assert nothing.init(nets.params()) == {} and nothing.penalty({}) == 0
  with pytest.raises(UserError, match="the number of 'kernel' in soft_threshold's rules is '1'"):
    soft_threshold(rules=[("kernel", "1")]).init({"kernel": jnp.ones((2, 2))})
