"""A stage that trains a quantized model trains it in training mode: by hand, resumed, and in all parallel modes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from leanax.engine.data import Input, Preprocess
from leanax.pipeline import calibrate, learning, stage, trained
from leanax.pipeline.config.experiment import Quant
from tests.graph.models import fill, normal
from tests.integration import jobs

PREPROCESS = {"scale": 1 / 255, "mean": (0.0,), "std": (1.0,)}
X = jnp.abs(normal(0, 4, 8, 8, 1)) / 4


def calibrated(recipe, setting="w8a8"):
  """The filled model with its norms folded and on grids, and these grids."""
  whole = trained.Trained(recipe, fill(trained.variable_shapes(recipe)))
  spec = Input(4, 0, Preprocess(**PREPROCESS))
  model = calibrate.calibrated(Quant(((("*", setting)),), ""), whole, [X], spec)
  return model, trained.grids(model)


def in_training(model):
  """`run(key) -> (logits, model_state, quant_state)` of a stage's training."""
  forward = learning.forward_of(jobs.experiment().stages["int8"], trained.functions(model.recipe))
  return jax.jit(lambda key: forward(*trained.trees(model.variables), X, train=True, key=key, axis_name=None))


def rounded(layer, grids, name, source):
  """A layer's kernel on its grid, and its bias in steps of the product."""
  steps = grids[source].scale * grids[f"{name}/kernel"].scale
  return {
    "kernel": quant.fake_quant(layer["kernel"], grids[f"{name}/kernel"]),
    "bias": jnp.round(layer["bias"] / steps) * steps,
  }


class ByHand(nn.Module):
  """`zoo.mlp:MLP` in training, each layer's input rounded after its dropout."""

  grids: dict

  @nn.compact
  def __call__(self, x):
    x = quant.fake_quant(x.reshape(x.shape[0], -1), self.grids["input"])
    x = nn.Dropout(0.5, deterministic=False)(nn.relu(nn.Dense(16)(x)))
    x = nn.Dense(3)(quant.fake_quant(x, self.grids["Dense_0/kernel:out"]))
    return quant.fake_quant(x, self.grids["Dense_1/kernel:out"])


def test_dropout_is_drawn_as_by_hand():
  kwargs = {"widths": (16,), "classes": 3, "dropout": 0.5}
  model, grids = calibrated(trained.Recipe("zoo.mlp:MLP", kwargs, (8, 8, 1), ("0", "1", "2"), PREPROCESS))
  sources = {"Dense_0": "input", "Dense_1": "Dense_0/kernel:out"}
  params = {name: rounded(model.variables["params"][name], grids, name, source) for name, source in sources.items()}
  run = in_training(model)
  outs = [run(jax.random.key(i))[0] for i in (0, 1)]
  assert np.abs(outs[0] - outs[1]).max() > 1e-3
  for i, out in enumerate(outs):
    expected = ByHand(grids).apply({"params": params}, X, rngs={"dropout": jax.random.key(i)})
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_batch_norms_that_stay_take_statistics_of_the_simulated_integers():
  recipe = trained.Recipe("tests.pipeline.nets:Dropped", {}, (8, 8, 1), ("0", "1", "2"), PREPROCESS)
  model, grids = calibrated(recipe)
  _, state, quant_state = in_training(model)(jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, quant_state, model.variables["quant_state"])
  params = {"params": rounded(model.variables["params"]["Conv_0"], grids, "Conv_0", "input")}
  seen = nn.relu(nn.Conv(4, (3, 3)).apply(params, quant.fake_quant(X, grids["input"])))
  seen = quant.fake_quant(seen, grids["Conv_0/kernel:out"])  # a norm that stays reads what the layer hands on
  before = model.variables["batch_stats"]["BatchNorm_1"]["mean"]
  expected = 0.99 * before + 0.01 * nn.max_pool(seen, (2, 2), (2, 2)).mean((0, 1, 2))
  np.testing.assert_allclose(state["batch_stats"]["BatchNorm_1"]["mean"], expected, rtol=1e-5)
  assert state.keys() == {"batch_stats"} and state["batch_stats"].keys() == {"BatchNorm_1"}


def test_estimators_that_round_at_random_get_the_key_of_the_step():
  kwargs = {"widths": (16,), "classes": 3}
  recipe = trained.Recipe("zoo.mlp:MLP", kwargs, (8, 8, 1), ("0", "1", "2"), PREPROCESS)
  model, _ = calibrated(recipe, "w4a8 stochastic")
  (one, *_), (other, *_) = map(in_training(model), (jax.random.key(0), jax.random.key(1)))
  assert np.abs(one - other).max() > 1e-3
  (one, *_), (other, *_) = map(in_training(calibrated(recipe)[0]), (jax.random.key(0), jax.random.key(1)))
  np.testing.assert_array_equal(one, other)


GIVEN = {
  "run": ("alone",),
  "models__student__kwargs": {"widths": (8,), "classes": 4, "dropout": 0.5},
  "stages__alone__quant": {"rules": (("*", "w8a8 stochastic"),), "calibration_batches": 2},
}


@pytest.mark.slow
def test_a_stopped_stage_resumes_as_if_uninterrupted(tmp_path):
  whole = stage.run_stage("alone", jobs.opened(tmp_path / "whole", **GIVEN), {})
  with jobs.interrupted(9):
    stage.run_stage("alone", jobs.opened(tmp_path / "broken", **GIVEN), {})
  again = stage.run_stage("alone", jobs.opened(tmp_path / "broken", **GIVEN), {})
  jax.tree.map(np.testing.assert_array_equal, again.variables, whole.variables)
  texts = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "broken")]
  assert texts[0] == texts[1]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["pmap", pytest.param("shard_map", marks=pytest.mark.slow)])
def test_devices_round_at_random(tmp_path, way):
  """The noise of each device is its own, its gradient a part of the mean, and all hold the same parameters."""
  context = jobs.opened(tmp_path, **GIVEN, parallel=way, stages__alone__epochs=1)
  left = stage.run_stage("alone", context, {})
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(left.variables))


@pytest.mark.parametrize(
  "modes", [("jit", "mesh"), pytest.param(("pmap", "shard_map"), marks=pytest.mark.slow)], ids="-".join
)
def test_parallel_modes_agree(tmp_path, modes):
  """Each device has a dropout of its own in pmap and shard_map, so that these agree with each other only."""
  learned = {**GIVEN, "stages__alone__quant": {"rules": (("*", "w8a8 learned"),), "calibration_batches": 2}}
  found = [
    stage.run_stage("alone", jobs.opened(tmp_path / way, **learned, parallel=way, stages__alone__epochs=1), {})
    for way in modes
  ]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *(one.variables for one in found))
