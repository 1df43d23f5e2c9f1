"""Frozen leaves keep their bits, and the others move as if these were no parameters at all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kd
from leanax import engine
from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from leanax.engine.train import forward, freeze
from tests.engine import nets

OBJECTIVE = kd.weighted([kd.Term("hard", kd.hard_labels())])
X = jax.random.normal(jax.random.key(0), (16, nets.FEATURES))
BATCH = {"image": X, "label": jnp.argmax(X[:, : nets.CLASSES], 1).astype(jnp.int32)}
SETTINGS = {
  "sgd": {"momentum": 0.9, "weight_decay": 0.1, "clip_norm": 0.5},
  "adamw": {"weight_decay": 0.1, "clip_norm": 0.5},
  "dot": {"weight_decay": 0.1, "clip_norm": 0.5, "delta": 0.05},
}

DECAYS = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1))  # scales, too


def start():
  """Variables with entries that are easily lost: zeros with a sign."""
  found = nets.variables()
  found["params"]["first"]["bias"] = found["params"]["first"]["bias"].at[0].set(-0.0)
  found["batch_stats"]["norm"]["mean"] = found["batch_stats"]["norm"]["mean"].at[0].set(-0.0)
  return found


def trained(fn, variables, name, steps=4, **options):
  tx = engine.optimizer(name, 0.1, **SETTINGS[name]) if name in SETTINGS else DECAYS
  init, step = engine.training(fn, OBJECTIVE, tx, ema=0.5, **options)
  state, step = init(variables), jax.jit(step)
  for _ in range(steps):
    state, metrics = step(state, BATCH)
  return state, metrics


def bits(leaf):
  return np.asarray(leaf).tobytes()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", SETTINGS)
def test_frozen_leaves_keep_their_bits_and_the_others_move_as_without_them(name):
  before = start()
  state, metrics = trained(nets.student, before, name, freeze=("first/*", "norm/mean"))
  fixed = {"params/first/kernel", "params/first/bias", "batch_stats/norm/mean"}
  for tree in (state.variables, {"params": state.ema["params"], **state.ema["model_state"]}):
    same = {leaf for leaf, value in named_leaves(tree).items() if bits(value) == bits(named_leaves(before)[leaf])}
    assert same == fixed
  # The same network with constants in the place of the frozen layer.
  first, mean = before["params"]["first"], before["batch_stats"]["norm"]["mean"]

  def fewer(variables, qparams, quant_state, x, *, train, key, axis_name):
    del qparams
    whole = {
      "params": {"first": first, **variables["params"]},
      "batch_stats": {"norm": {"mean": mean, **variables["batch_stats"]["norm"]}},
    }
    logits, stats = nets.mlp(whole, x, train=train, key=key)
    return logits, {"batch_stats": {"norm": {"var": stats["batch_stats"]["norm"]["var"]}}}, quant_state

  rest = {"params": {"last": before["params"]["last"]}, "batch_stats": {"norm": {"var": jnp.ones(8)}}}
  other, without = trained(fewer, rest, name)
  assert float(metrics["grad_norm"]) == pytest.approx(float(without["grad_norm"]), rel=1e-6)
  for leaf, value in other.params["last"].items():
    np.testing.assert_allclose(state.params["last"][leaf], value, rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(state.ema["params"]["last"]["kernel"], other.ema["params"]["last"]["kernel"], rtol=1e-6)


def test_the_scale_of_a_frozen_kernel_stays_and_those_of_activations_train():
  qparams = {"last/kernel": jnp.ones(3), "first/kernel": jnp.ones(8), "input": jnp.ones(())}

  def scaled(variables, qparams, quant_state, x, *, train, key, axis_name):
    p = variables["params"]
    h = jax.nn.relu(x * qparams["input"] @ (p["first"]["kernel"] * qparams["first/kernel"]))
    return h @ (p["last"]["kernel"] * qparams["last/kernel"]), {}, quant_state

  kernels = {key: {"kernel": value["kernel"]} for key, value in start()["params"].items()}
  variables = {"params": kernels, "qparams": qparams}
  state, _ = trained(scaled, variables, "decays", freeze=("first/kernel",))
  for tree in (state.qparams, state.ema["qparams"]):
    assert {name for name, scale in tree.items() if bits(scale) == bits(qparams[name])} == {"first/kernel"}


@pytest.mark.parametrize(
  ("patterns", "sentence"),
  [
    (("frist/*",), r"freeze rule 'frist/\*' matches nothing; names near it: first"),
    (("first/*", "first/kernel"), "freeze rule 'first/kernel' never applies"),
    (("*",), r"freeze rules \('\*',\) hold every parameter; expected one that is left to train"),
  ],
)
def test_mistakes_are_named(patterns, sentence):
  with pytest.raises(UserError, match=sentence):
    freeze.frozen(patterns, nets.variables())


def test_weights_that_are_made_anew_cannot_be_frozen():
  from sparsity import reparam

  with pytest.raises(UserError, match="'freeze' holds leaves whose weights a reparameterization makes anew"):
    engine.training(
      forward.plain(nets.without_norm), OBJECTIVE, optax.sgd(1.0), freeze=("x",), reparam=reparam.soft_threshold()
    )
