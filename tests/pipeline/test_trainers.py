"""Stages with further ways of training: DOT, norms of terms, mutual learning."""

import json

import jax
import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.pipeline import fitting, stage, start
from leanax.pipeline.seeds import train_seeds
from tests.integration import jobs


def kernel(done):
  return np.asarray(done["distilled"].variables["params"]["Dense_0"]["kernel"])


def test_dot_trains_a_stage_and_is_sgd_without_a_difference(tmp_path):
  def one(folder, **optimizer):
    given = {"learning_rate": 0.05, "accumulate": 2, "clip_norm": 1.0, "weight_decay": 1e-3, **optimizer}
    context = jobs.opened(tmp_path / folder, stages__distilled__optimizer=given)
    return kernel(jobs.train(jobs.with_teacher(context))), stage.curves("distilled", context)

  dot, series = one("dot", name="dot")
  assert series["loss"][-1][1] < series["loss"][0][1]
  sgd, _ = one("sgd", name="sgd")
  same, _ = one("same", name="dot", delta=0.0)
  np.testing.assert_array_equal(same, sgd)
  assert np.any(dot != sgd)


def test_dot_needs_losses_of_both_kinds(tmp_path):
  for objective in ({"hard_labels": {}}, {"hinton": {}}):
    with pytest.raises(UserError, match="'stages.distilled.optimizer.name' is 'dot'.*losses of both kinds"):
      jobs.opened(tmp_path, stages__distilled__optimizer={"name": "dot"}, stages__distilled__objective=objective)
  with pytest.raises(UserError, match="config group 'stages.distilled.optimizer': dot: momentum is 0.9 and delta 0.2"):
    jobs.train(jobs.opened(tmp_path, stages__distilled__optimizer={"name": "dot", "delta": 0.2}))


def norms_of(context, name="distilled"):
  return {key: values for key, values in stage.curves(name, context).items() if key.endswith("/grad_norm")}


def test_norms_of_terms_are_logged_and_change_nothing(tmp_path, monkeypatch):
  context = jobs.opened(tmp_path / "logged")
  done = jobs.train(context)
  found = norms_of(context)
  assert set(found) == {"hard_labels/grad_norm", "hinton/grad_norm"}
  steps = [step for step, _ in stage.curves("distilled", context)["loss"]]
  for series in found.values():
    assert [step for step, _ in series] == steps and all(value > 0 for _, value in series)
  assert not norms_of(context, "teacher")  # a single term has the norm of the step
  monkeypatch.setattr(fitting.engine, "term_norms", lambda *args, **kwargs: lambda *args, **kwargs: {})
  without = jobs.opened(tmp_path / "without")
  np.testing.assert_array_equal(kernel(done), kernel(jobs.train(without)))
  lines = [(one.folder / "metrics.jsonl").read_text().splitlines() for one in (context, without)]
  for actual, desired in zip(*lines, strict=True):
    kept = {key: value for key, value in json.loads(actual).items() if key.count("/") < 2}
    assert kept == json.loads(desired)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["shard_map", "pmap"])
def test_norms_of_terms_are_those_of_one_device(tmp_path, parallel):
  changes = {"stages__distilled__augment": {"shift": (1, 1)}}  # so the teacher runs in the step
  one, many = (jobs.opened(tmp_path / way, parallel=way, **changes) for way in ("jit", parallel))
  jobs.train(one), jobs.train(many)
  for key, series in norms_of(one).items():
    np.testing.assert_allclose([v for _, v in norms_of(many)[key]], [v for _, v in series], rtol=2e-3)


MUTUAL = {"hard_labels": {}, "hinton": {"temperature": 1.0}}


def peers_of(folder, count=2, **changes):
  given = {"run": ("alone",), "stages__alone__objective": MUTUAL, "stages__alone__peers": count}
  return jobs.opened(folder, **given, **changes)


def test_peers_train_and_leave_the_first(tmp_path):
  context = peers_of(tmp_path, 3)
  done = {}
  left = stage.run_stage("alone", context, done)
  series = stage.curves("alone", context)
  assert series["hard_labels"][-1][1] < series["hard_labels"][0][1] and series["hinton"][0][1] > 0
  assert series["validation_accuracy"][-1][1] > 0.5
  assert {"hard_labels/grad_norm", "hinton/grad_norm"} <= set(series)
  shapes = jax.tree.map(np.shape, left.variables["params"])
  alone = start.model_of(context.config.stages["alone"], context.config, context.data, {})
  assert shapes == jax.tree.map(np.shape, alone.variables["params"])
  given = context.config.stages["alone"], context.config, context.data, {}
  others = [start.model_of(*given, peer=peer) for peer in range(3)]
  first, second, third = (np.asarray(one.variables["params"]["Dense_0"]["kernel"]) for one in others)
  np.testing.assert_array_equal(first, alone.variables["params"]["Dense_0"]["kernel"])
  assert np.any(first != second) and np.any(second != third)


@pytest.mark.slow
def test_peers_of_several_seeds_train_together(tmp_path):
  given = {"run": ("alone",), "stages__alone__objective": MUTUAL, "stages__alone__peers": 2, "seeds": 2}
  together = train_seeds(jobs.experiment(**given, seeds_over="vmap"), tmp_path / "vmap")
  apart = train_seeds(jobs.experiment(**given), tmp_path / "loop")
  for (run, seed_together), (other, seed_alone) in zip(together, apart, strict=True):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
      seed_together["alone"].variables,
      seed_alone["alone"].variables,
    )
    for key, series in norms_of(other, "alone").items():
      np.testing.assert_allclose([v for _, v in norms_of(run, "alone")[key]], [v for _, v in series], rtol=1e-2)


@pytest.mark.slow  # for time only
def test_peers_may_be_quantized_and_sparse(tmp_path):
  changes = {
    "stages__alone__quant": {"rules": (("*", "w8a8 learned"),), "calibration_batches": 2},
    "stages__alone__sparsity": {"name": "magnitude", "density": 0.5},
    "stages__alone__optimizer": {"name": "dot", "learning_rate": 0.1, "ema": 0.5, "accumulate": 2},
  }
  left = stage.run_stage("alone", peers_of(tmp_path, **changes), {})
  weights = np.asarray(left.variables["params"]["Dense_0"]["kernel"])
  assert np.count_nonzero(weights) == weights.size // 2 and left.variables["qparams"]


def test_each_layer_of_a_scan_is_pruned_by_itself(tmp_path):
  changes = {
    "models__scanned": {"name": "tests.pipeline.nets:scanned", "kwargs": {}},
    "stages__alone__model": "scanned",
    "stages__alone__sparsity": {"name": "magnitude", "density": 0.25, "schedule": {"name": "one_shot", "at": 1.0}},
  }
  left = stage.run_stage("alone", jobs.opened(tmp_path, run=("alone",), **changes), {})
  kernels = np.asarray(left.variables["params"]["blocks"]["kernel"])
  np.testing.assert_array_equal(np.count_nonzero(kernels, (1, 2)), [16, 16, 16])


def test_peers_that_cannot_learn_from_each_other_are_refused(tmp_path):
  with pytest.raises(UserError, match="'stages.alone.peers' is 0; expected a whole number from 1 to 100"):
    peers_of(tmp_path, 0)
  with pytest.raises(UserError, match="'stages.alone.peers' is 2; expected an objective with a loss that compares"):
    jobs.opened(tmp_path, run=("alone",), stages__alone__peers=2)
  with pytest.raises(UserError, match="'stages.distilled.teacher' is 'teacher', and its peers teach each other"):
    jobs.opened(tmp_path, stages__distilled__peers=2)
  with pytest.raises(UserError, match="'stages.alone.start' is 'first', and all peers would start alike"):
    stages = {**jobs.EXPERIMENT["stages"], "first": jobs.STAGE}
    stages["alone"] = {**jobs.STAGE, "start": "first", "peers": 2, "objective": MUTUAL}
    jobs.opened(tmp_path, stages=stages, run=("first", "alone"))
  with pytest.raises(UserError, match="reads 'Dense_0/kernel:out' of a teacher, and 'teacher' names no other model"):
    hidden = {"student": "Dense_0/kernel:out", "teacher": "Dense_0/kernel:out"}
    jobs.opened(
      tmp_path, run=("alone",), stages__alone__peers=2, stages__alone__objective={"hard_labels": {}, "sp": hidden}
    )
