"""A weight as a function of what is trained, in the step: against plain optax, averaged, accumulated and exported."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kd
import sparsity
from leanax import engine
from leanax.core.errors import UserError
from leanax.engine.train import optim
from leanax.engine.train.forward import plain
from leanax.graph.kinds import Reparam
from tests.numbers import array

OBJECTIVE = kd.weighted([kd.Term("hard", kd.hard_labels())])


def linear(variables, x, *, train, key):
  return x @ variables["params"]["kernel"] + variables["params"]["bias"], {}


def start():
  rng = np.random.default_rng(0)
  return {"params": {"kernel": array(0.3 * rng.normal(size=(40, 3)), jnp.float32), "bias": jnp.zeros(3)}}


def batch():
  """200 examples whose class depends on 4 of 40 inputs."""
  rng = np.random.default_rng(1)
  x = rng.normal(size=(200, 40)).astype(np.float32)
  return {"image": array(x), "label": array((x[:, :4] @ rng.normal(size=(4, 3))).argmax(-1), jnp.int32)}


def trained(reparam, tx, steps, **keywords):
  init, step = engine.training(plain(linear), OBJECTIVE, tx, reparam=reparam, **keywords)
  step, state = jax.jit(step), init(start())
  for _ in range(steps):
    state, metrics = step(state, batch())
  return state, metrics


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_step_is_a_plain_optax_loop(accumulate):
  reparam = sparsity.reparam.soft_threshold(initial=-2.0, decay=0.1)
  tx = optax.sgd(0.5)
  state, metrics = trained(reparam, tx, 3, accumulate=accumulate)

  def loss_fn(trained):
    params, _ = reparam.forward(*trained, step=jnp.int32(0), key=jax.random.key(0), train=True)
    logits = linear({"params": params}, batch()["image"], train=True, key=None)[0]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch()["label"]).mean() + reparam.penalty(
      trained[1]
    )

  both = start()["params"], reparam.init(start()["params"])
  for _ in range(3):
    loss, grads = jax.value_and_grad(loss_fn)(both)
    both = jax.tree.map(lambda w, g: w - 0.5 * g, both, grads)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), both, (state.params, state.aux["reparam"]))
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
  assert float(metrics["reparam/penalty"]) > 0 and float(state.aux["reparam"]["kernel"]) != -2.0


def test_thresholds_are_learned_at_their_own_rate_and_export_is_evaluation():
  reparam = sparsity.reparam.soft_threshold(initial=-4.0, decay=5e-2)
  state, _ = trained(reparam, optim.optimizer("adam", 0.02, rates={"reparam": 5.0}), 200, ema=0.9)
  final = engine.deployed(state, reparam)
  kernel = np.asarray(final.params["kernel"])
  assert float(state.aux["reparam"]["kernel"]) > -4.0 and np.mean(kernel[4:] != 0) < 0.5 and np.all(kernel[:4].any(-1))
  # Plain weights are exported: the averaged ones behind the averaged threshold, as the paper's equation 4 says.
  raw, s = np.float64(state.ema["params"]["kernel"]), np.float64(state.ema["aux"]["reparam"]["kernel"])
  np.testing.assert_allclose(kernel, np.sign(raw) * np.maximum(np.abs(raw) - 1 / (1 + np.exp(-s)), 0), atol=1e-6)
  logits = linear(final.variables, batch()["image"], train=False, key=None)[0]
  assert engine.accuracy(np.asarray(logits), batch()["label"]) > 0.9
  held, _ = trained(reparam, optim.optimizer("adam", 0.02, rates={"reparam": 0.0}), 2)
  assert float(held.aux["reparam"]["kernel"]) == -4.0


def test_zero_penalty_and_no_threshold_are_the_dense_net():
  dense = Reparam(lambda params: {}, lambda params, aux, *, step, key, train: (params, {}), lambda aux: jnp.zeros(()))
  given, plainly = (trained(one, optax.sgd(0.1), 2)[0] for one in (dense, None))
  np.testing.assert_array_equal(given.params["kernel"], plainly.params["kernel"])
  assert engine.deployed(plainly) is plainly


def test_memory_has_a_place_in_the_state():
  def forward(params, aux, *, step, key, train):
    return params, {"last": step.astype(jnp.float32)}

  state, _ = trained(Reparam(lambda params: {}, forward, lambda aux: jnp.zeros(())), optax.sgd(0.1), 3)
  assert float(state.aux_state["reparam"]["last"]) == 2.0


def test_the_name_of_its_state_is_reserved():
  with pytest.raises(UserError, match="a term is called 'reparam', .*; expected another name"):
    engine.training(plain(linear), kd.weighted([kd.Term("reparam", kd.hard_labels())]), optax.sgd(0.1))
