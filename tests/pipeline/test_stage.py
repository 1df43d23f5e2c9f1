"""One stage: its teacher, its state when it stops, its grids, and its steps in the run's metrics."""

import re

import jax
import numpy as np
import pytest

import quant
from leanax.core.errors import UserError
from leanax.engine import data as datasets
from leanax.pipeline import build, calibrate, job, stage, teacher_outputs, trained
from tests.engine.test_metrics import scalars
from tests.integration import jobs

HINTON = build.objective("s", {"hinton": {}})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  context = jobs.opened(tmp_path_factory.mktemp("teacher"))
  return stage.run_stage("teacher", context, {})


def distilled(tmp_path, teacher, **changes):
  context = jobs.opened(tmp_path, **{f"stages__distilled__{key}": value for key, value in changes.items()})
  return stage.run_stage("distilled", context, {"teacher": teacher}), context


@pytest.mark.exact
@pytest.mark.parametrize("augment", [{}, {"shift": (1, 1), "views": 2, "mixup": 0.3}], ids=["still", "views"])
def test_stored_logits_are_those_of_the_teacher_in_the_step(tmp_path, teacher, augment):
  (stored, first), (live, second) = (
    distilled(tmp_path / str(cache), teacher, augment=augment, cache_teacher=cache) for cache in (True, False)
  )
  spec = build.inputs(first.config, first.config.stages["distilled"])
  arrays = datasets.device_arrays(first.data.train)
  outputs = teacher_outputs.make(first.config.stages["distilled"], [teacher], arrays, spec, HINTON, tmp_path / "logits")
  assert outputs.teacher is None and outputs.variables is None
  assert outputs.stored["teacher_logits"].shape == ((128, 2, 4) if augment else (128, 4))
  one, two = (dict(stage.curves("distilled", context)["hinton"]) for context in (first, second))
  # The weights have the same bits; the sum that is logged is fused, and so rounded, otherwise.
  np.testing.assert_allclose(list(one.values()), list(two.values()), rtol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, stored.variables, live.variables)


def test_logits_are_not_stored_where_images_change_in_each_epoch(tmp_path, teacher):
  context = jobs.opened(tmp_path, stages__distilled__augment={"shift": (1, 1)})
  given = context.config.stages["distilled"]
  arrays = datasets.device_arrays(context.data.train)
  function, trees, own, *_ = teacher_outputs.make(
    given, [teacher], arrays, build.inputs(context.config, given), HINTON, tmp_path
  )
  assert function is not None and not own
  x = datasets.normalise(context.data.test.images[:5], datasets.Preprocess())
  np.testing.assert_array_equal(function(trees, x), trained.functions(teacher.recipe).fn(teacher.variables, x))


EVERYTHING = {
  "batch_size": 16,
  "augment": {"shift": (1, 1), "mixup": 0.3},
  "optimizer": {
    "name": "sgd", "learning_rate": 0.1, "nesterov": True, "warmup_steps": 2, "clip_norm": 1.0, "accumulate": 2,
    "ema": 0.8, "weight_decay": 1e-3,
  },
  "sparsity": {**jobs.EXPERIMENT["stages"]["pruned"]["sparsity"], "density": 0.5},
}  # fmt: skip


HIDDEN = {"student": "Dense_0/kernel:out", "teacher": "Dense_1/kernel:out"}
REMEMBERS = {
  "objective": {
    "hard_labels": {},
    "fitnet": HIDDEN,
    "crd": {"weight": 0.1, **HIDDEN, "examples": 256, "negatives": 8, "width": 4},
    "ctkd": {"steps": 12},
  }
}


@pytest.mark.parametrize(
  "settings", [pytest.param(EVERYTHING, id="optimizer", marks=pytest.mark.slow), pytest.param(REMEMBERS, id="losses")]
)
def test_a_stage_with_everything_in_its_state_resumes_as_if_uninterrupted(tmp_path, teacher, settings):
  whole, _ = distilled(tmp_path / "whole", teacher, **settings)
  with jobs.interrupted(9):
    distilled(tmp_path / "broken", teacher, **settings)
  assert (tmp_path / "broken" / "checkpoints" / "distilled" / "8").is_dir()  # and step 9 is lost
  again, _ = distilled(tmp_path / "broken", teacher, **settings)
  jax.tree.map(np.testing.assert_array_equal, again.variables, whole.variables)
  for name in ("metrics.jsonl", "models/distilled.safetensors"):
    assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
  kernel = np.asarray(again.variables["params"]["Dense_0"]["kernel"])
  assert (
    "sparsity" not in settings or np.count_nonzero(kernel) == kernel.size // 2
  )  # the averages that are saved are pruned as well


def test_bfloat16_trains_float32_masters(tmp_path, teacher):
  model, context = distilled(tmp_path, teacher, precision="bfloat16")
  assert {leaf.dtype for leaf in jax.tree.leaves(model.variables)} == {np.dtype(np.float32)}
  exact = distilled(tmp_path / "exact", teacher)[0]
  kernels = [m.variables["params"]["Dense_0"]["kernel"] for m in (model, exact)]
  assert 0 < np.abs(kernels[0] - kernels[1]).max() < 0.2
  assert dict(stage.curves("distilled", context)["loss"])[12] > 0


def test_a_run_knows_the_first_step_of_each_stage(tmp_path):
  config = jobs.experiment(run=("teacher", "distilled", "pruned"), stages__distilled__epochs=5)
  context = stage.opened(config, tmp_path)
  assert [job.first_step(name, context) for name in config.run] == [0, 12, 32]


def test_a_user_sees_the_place_of_a_stage_and_curves_that_overlay(tmp_path, capfd):
  short = {f"stages__{name}__epochs": 1 for name in ("teacher", "distilled")}
  jobs.train(jobs.opened(tmp_path, stages__distilled__optimizer={"learning_rate": 0.01}, **short))
  lines = capfd.readouterr().err.splitlines()
  for number, name in enumerate(("teacher", "distilled"), 1):
    own = [line.removeprefix(f"stage {number} of 2, {name}: ") for line in lines if f", {name}: " in line]
    assert own[0] == "compiling" and own[1].startswith("step 1/4, the first after ")
    assert "step 1/4, compiling the evaluation" in own[2:4]
    assert re.fullmatch(r"step 4/4, .* steps/s, 0:00 left, validation accuracy [\d.]+, loss [\d.]+", own[-1])
  events = {name: scalars(tmp_path / "tensorboard" / name) for name in ("teacher", "distilled")}
  tags = {name: {tag for _, tag, _ in found} for name, found in events.items()}
  assert {"loss", "validation_accuracy", "train_accuracy"} <= tags["teacher"] <= tags["distilled"]
  for found in events.values():
    assert [step for step, tag, _ in found if tag == "loss"] == [1, 2, 3, 4]


def test_needs_come_first_and_nothing_else_runs(tmp_path, monkeypatch):
  context = job.Context(jobs.experiment(), tmp_path, None, tmp_path)  # pyrefly: ignore
  ran = []
  monkeypatch.setattr(stage, "run_stage", lambda name, context, done: ran.append(name))
  stage.run_with_needs("int8", context, {})
  assert ran == ["teacher", "distilled", "pruned", "int8"]
  with pytest.raises(UserError, match="unknown stage 'int9'; did you mean 'int8'"):
    stage.run_with_needs("int9", context, {})


@pytest.mark.parametrize("preprocess", [{}, {"mean": (0.5,), "std": (0.25,)}], ids=["unit", "centred"])
def test_pixels_are_not_rounded_on_ties(tmp_path, teacher, preprocess):
  """Images of few levels must not be rounded on their way in, whatever range the calibration batches had."""
  context = jobs.opened(tmp_path, preprocess=preprocess)
  given = context.config.stages["int8"]
  spec = build.inputs(context.config, given)
  split = context.data.train
  dark = {**datasets.device_arrays(split), "image": jax.numpy.asarray(split.images // 2)}
  made = calibrate.calibrated(given.quant, teacher, calibrate.batches(dark, spec, 2), spec)
  grid = trained.grids(made)["input"]
  levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  codes = quant.codes(datasets.normalise(levels, spec.preprocess), grid)
  places = np.asarray(datasets.normalise(levels, spec.preprocess), np.float64) / float(grid.scale)
  assert np.abs(np.mod(places, 1.0) - 0.5).min() > 1e-3  # no level is a tie, which rounding errors would decide
  if preprocess:  # 256 levels and the number 0 between two of them do not fit into 256 codes
    assert len(np.unique(codes)) >= 248
  else:
    np.testing.assert_array_equal(np.ravel(codes), np.arange(-128, 128))


@pytest.mark.parametrize(
  ("kwargs", "sentence"),
  [
    ({"widths": (10**9,)}, r"with .*1000000000.* has 164.0 GB of weights, .* to fit the .* GB of this machine"),
    ({"widths": (0,)}, r"cannot be called with images of \(6, 6, 1\): ZeroDivisionError"),
    ({"widths": (8,), "dropout": 1e308}, r"dropout is 1e\+308; expected a number from 0 to below 1"),
    ({"widths": (8,), "dropout": (0.5,)}, r"cannot be called with images of \(6, 6, 1\): TypeError"),
  ],
)
def test_a_model_that_cannot_train_is_refused_before_the_directory_is_claimed(tmp_path, kwargs, sentence):
  with pytest.raises(UserError, match=f"^model 'student', 'zoo.mlp:MLP' .*{sentence}"):
    jobs.opened(tmp_path / "run", run=("alone",), models__student__kwargs={"classes": 4, **kwargs})
  assert not (tmp_path / "run").exists()


def test_a_model_that_fails_in_training_alone_is_named(tmp_path):
  with pytest.raises(UserError, match=r"stage 'alone': its model '.*:Forgets' cannot be run in training: KeyErr"):
    jobs.opened(tmp_path, run=("alone",), models__student={"name": "tests.pipeline.nets:Forgets"})


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"objective": {"hard_labels": {"weight": 0.0}}}, "'stages.alone.objective' has no weight but 0; expected"),
    ({"epochs": 1_000_000, "batch_size": 1}, "'epochs' is 1000000, which makes 2148000000 batches; expected"),
  ],
)
def test_a_stage_that_cannot_learn_or_count_is_refused(tmp_path, changes, sentence):
  many = {"data__kwargs": {**jobs.EXPERIMENT["data"]["kwargs"], "train": 2148}} if "epochs" in changes else {}
  with pytest.raises(UserError, match=sentence):
    jobs.opened(tmp_path / "run", run=("alone",), **{f"stages__alone__{key}": x for key, x in changes.items()}, **many)
  assert not (tmp_path / "run").exists()
