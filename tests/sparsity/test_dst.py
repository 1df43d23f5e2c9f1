"""Trainable thresholds with masks against float64 numpy, and trained in a plain optax loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsity
from leanax.core.errors import UserError
from sparsity.reparam import dst
from tests.sparsity import nets


def forward(reparam, params, aux, train=True):
  return reparam.forward(params, aux, step=jnp.int32(0), key=jax.random.key(0), train=train)[0]


def slope(q):
  """The paper's long-tailed derivative of the step."""
  q = np.abs(q)
  return np.select([q <= 0.4, q <= 1], [2 - 4 * q, np.full_like(q, 0.4)], 0.0)


def test_worked_case():
  """Thresholds 1 and 1/2 of the two outputs; an entry on its threshold is pruned, and zeros are +0."""
  w = {"kernel": jnp.array([[2.0, -0.25], [-1.0, 0.75]]), "bias": jnp.array([0.1])}
  out = forward(dst(), w, {"kernel": jnp.array([[1.0, 0.5]])})
  np.testing.assert_array_equal(out["kernel"], [[2.0, 0.0], [0.0, 0.75]])
  assert not np.any(np.signbit(np.asarray(out["kernel"]))) and out["bias"] is w["bias"]
  # W 2 with the gap 1 has the slope 0.4, -1/4 with the gap -1/4 the slope 1, -1 on it the slope 2, 3/4 again 1.
  total = lambda params, aux: jnp.sum(forward(dst(), params, aux)["kernel"])
  by_w, by_t = jax.grad(total, (0, 1))(w, {"kernel": jnp.array([[1.0, 0.5]])})
  np.testing.assert_allclose(by_w["kernel"], [[1 + 2 * 0.4, 0.25], [1 * 2, 1 + 0.75]], rtol=1e-6)
  np.testing.assert_allclose(by_t["kernel"], [[-2 * 0.4 + 1 * 2, 0.25 - 0.75]], rtol=1e-6)


@pytest.mark.parametrize("shape", [(7, 5), (3, 3, 4, 2)])
def test_values_and_gradients_in_float64(shape):
  rng = np.random.default_rng(0)
  w, c, t = (
    1.5 * rng.normal(size=shape),
    rng.normal(size=shape),
    rng.uniform(0, 1, (*(1,) * (len(shape) - 1), shape[-1])),
  )
  with jax.enable_x64(True):
    reparam = dst(alpha=0.3)
    assert reparam.init({"kernel": jnp.asarray(w)})["kernel"].shape == t.shape

    def loss(params, aux):
      return jnp.sum(c * jnp.sin(forward(reparam, params, aux)["kernel"])) + reparam.penalty(aux)

    value, (by_w, by_t) = jax.value_and_grad(loss, (0, 1))({"kernel": jnp.asarray(w)}, {"kernel": jnp.asarray(t)})
  q = np.abs(w) - t
  kept = w * (q > 0)
  g = c * np.cos(kept)
  np.testing.assert_allclose(value, np.sum(c * np.sin(kept)) + 0.3 * np.sum(np.exp(-t)), rtol=1e-12)
  np.testing.assert_allclose(by_w["kernel"], g * (q > 0) + g * w * slope(q) * np.sign(w), rtol=1e-12)
  want = -(g * w * slope(q)).sum(tuple(range(len(shape) - 1)), keepdims=True) - 0.3 * np.exp(-t)
  np.testing.assert_allclose(by_t["kernel"], want, rtol=1e-12)


def test_layers_of_one_leaf_have_thresholds_of_their_own():
  w = {"blocks": {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 3)), jnp.float32)}}
  for axis, shape in ((0, (4, 1, 3)), (2, (1, 5, 3)), ((0, 1), (4, 5, 3))):
    reparam = dst(stacked=[("blocks/*", axis)])
    assert reparam.init(w)["blocks/kernel"].shape == shape
  t = jnp.broadcast_to(jnp.array([0.0, 0.5, 9.0]), (1, 5, 3))
  out = forward(dst(stacked=[("blocks/*", 2)]), w, {"blocks/kernel": t})["blocks"]["kernel"]
  np.testing.assert_array_equal(out, np.where(np.abs(w["blocks"]["kernel"]) > np.asarray(t), w["blocks"]["kernel"], 0))


def test_a_plain_optax_loop_prunes_inputs_that_do_not_matter():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(256, 12)), jnp.float32)
  true = np.where(np.arange(12)[:, None] < 3, rng.choice([-1.0, 1.0], size=(12, 4)), 0)
  y = x @ jnp.asarray(true, jnp.float32)
  reparam, tx = dst(alpha=0.01), optax.sgd(0.1)
  params = {"kernel": jnp.asarray(true + 0.1 * rng.normal(size=(12, 4)), jnp.float32)}
  both = params, reparam.init(params)

  def loss(both):
    return jnp.mean((x @ forward(reparam, *both)["kernel"] - y) ** 2) + reparam.penalty(both[1])

  state, step = tx.init(both), jax.jit(jax.grad(loss))
  for _ in range(150):
    updates, state = tx.update(step(both), state)
    both = optax.apply_updates(both, updates)
  kernel = np.asarray(forward(reparam, *both, train=False)["kernel"])
  np.testing.assert_array_equal(kernel != 0, true != 0)
  np.testing.assert_allclose(kernel, true, atol=0.01)
  assert np.all(both[1]["kernel"] > 0.05)


def test_of_nnx_and_in_half_precision():
  state = nnx.state(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), nnx.Param)
  out = forward(dst(initial=0.2), state, dst(initial=0.2).init(state))
  kernel = np.asarray(state["kernel"][...])
  np.testing.assert_array_equal(out["kernel"][...], np.where(np.abs(kernel) > np.float32(0.2), kernel, 0))
  tree = jax.tree.map(lambda x: x.astype(jnp.bfloat16), nets.params())
  grown = jax.grad(lambda p: jnp.sum(forward(dst(), p, dst().init(tree))["Dense_0"]["kernel"]))(tree)
  assert grown["Dense_0"]["kernel"].dtype == jnp.bfloat16
  broken = forward(dst(), {"kernel": jnp.array([[jnp.nan, 1.0]])}, {"kernel": jnp.zeros((1, 2))})["kernel"]
  np.testing.assert_array_equal(broken, [[np.nan, 1]])


def test_mistakes():
  for keywords, sentence in (
    ({"initial": float("nan")}, "dst: initial is nan; expected a finite number"),
    ({"alpha": -1}, "dst: alpha is -1; expected a number, 0 or more"),
  ):
    with pytest.raises(UserError, match=sentence):
      dst(**keywords)
  with pytest.raises(UserError, match="'Dense_9/kernel' matches nothing"):
    dst(rules=[("Dense_9/kernel", True)]).init(nets.params())
  with pytest.raises(UserError, match="dst: aux has no thresholds of 'Conv_0/kernel'"):
    forward(dst(), nets.params(), {})
  with pytest.raises(UserError, match="the number of 'kernel' in dst's rules is '1'"):
    dst(rules=[("kernel", "1")]).init({"kernel": jnp.ones((2, 2))})
  nothing = dst(alpha=1.0, rules=[("*", False)])
  assert nothing.init(nets.params()) == {} and nothing.penalty({}) == 0
  assert sparsity.reparam.dst is dst
