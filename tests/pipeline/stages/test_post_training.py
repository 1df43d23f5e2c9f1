"""A stage that trains nothing: norms folded, grids from calibration batches, rounded to nearest."""

import jax
import numpy as np
import pytest

import quant
from leanax.core.errors import UserError
from leanax.engine import data as datasets
from leanax.pipeline import build, calibrate, evaluate, stage, trained
from leanax.pipeline.compress import compress
from leanax.pipeline.seeds import train_seeds
from tests.integration import jobs

RESNET = {"name": "zoo.resnet:ResNet", "kwargs": {"blocks": (1,), "widths": (4,), "classes": 4}}
PTQ = {"kind": "post_training", "start": "alone", "quant": {"rules": (("*", "w8a8"),), "calibration_batches": 2}}
RUN = {"run": ("alone", "ptq"), "stages__ptq": PTQ}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("ptq")
  config = jobs.experiment(**RUN, models__student=RESNET)
  return folder, config, compress(config, folder)


def model(folder, name):
  return trained.load(folder / "models" / f"{name}.safetensors")[0]


def test_it_leaves_a_model_a_row_and_a_file_without_a_step(run):
  folder, _, result = run
  before, after = result["rows"]
  assert after["codes_differ"] == 0 and after["parity"]["reference/runtime"]["max_steps"] <= 1
  assert abs(after["accuracy"] - before["accuracy"]) <= 0.1
  assert after["file_bytes"] == (folder / "files" / "ptq.tflite").stat().st_size
  assert result["curves"]["ptq"] == {} and not (folder / "checkpoints" / "ptq").exists()
  assert dict((name, hits) for name, hits, _ in evaluate.evaluate(folder))["ptq"] == after["accuracy"]


def test_kernels_are_those_of_the_folded_float_model_rounded_to_nearest(run):
  folder, *_ = run
  plain, rounded = trained.fold(model(folder, "alone")), model(folder, "ptq")
  assert not rounded.variables["qparams"] and not rounded.variables.get("batch_stats")
  jax.tree.map(np.testing.assert_array_equal, rounded.variables["params"], plain.variables["params"])
  grids = trained.grids(rounded)
  kernel, grid = np.asarray(plain.variables["params"]["Dense_0"]["kernel"], np.float64), grids["Dense_0/kernel"]
  scale = np.abs(kernel).max(0) / 127
  np.testing.assert_allclose(np.ravel(grid.scale), scale, rtol=1e-6)
  np.testing.assert_array_equal(quant.codes(np.float32(kernel), grid), np.round(kernel / np.float64(grid.scale)))


def test_ranges_are_of_the_calibration_batches(run):
  """The smallest and largest logit of the folded float model over the first two batches of training images."""
  folder, config, _ = run
  rounded, plain = model(folder, "ptq"), trained.fold(model(folder, "alone"))
  arrays = datasets.device_arrays(build.dataset(config).train)
  images = calibrate.batches(arrays, build.inputs(config, config.stages["ptq"]), 2)
  logits = np.concatenate([trained.functions(plain.recipe).fn(plain.variables, x) for x in images])
  grids = trained.grids(rounded)
  width = max(logits.max(), 0.0) - min(logits.min(), 0.0)
  np.testing.assert_allclose(float(grids["Dense_0/kernel:out"].scale) * 255, width, rtol=1e-5)


def test_a_finished_one_is_read_and_a_lost_one_is_made_again_with_the_same_bits(run):
  folder, config, result = run
  file = folder / "models" / "ptq.safetensors"
  written, content = file.stat().st_mtime_ns, file.read_bytes()
  assert compress(config, folder)["rows"] == result["rows"] and file.stat().st_mtime_ns == written
  file.unlink()
  context = stage.opened(config, folder)
  stage.run_stage("ptq", context, {"alone": model(folder, "alone")})
  assert file.read_bytes() == content


def test_the_prepared_model_is_the_one_left(run):
  folder, config, _ = run
  job, left = stage.opened(config, folder).jobs["ptq"], model(folder, "ptq")
  assert job.steps == 0 and job.leaves.recipe == left.recipe
  for prepared, made in zip(job.leaves[1:], left[1:], strict=True):
    shapes = [sorted((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(tree)) for tree in (prepared, made)]
    assert shapes[0] == shapes[1]


def test_it_runs_for_seeds_that_train_together(tmp_path):
  config = jobs.experiment(**RUN, seeds=2, seeds_over="vmap")
  (_, one), (_, other) = train_seeds(config, tmp_path)
  for done in (one, other):
    jax.tree.map(np.testing.assert_array_equal, trained.trees(done["ptq"].variables)[0], done["alone"].variables)
  assert any(np.any(np.asarray(a) != b) for a, b in zip(*map(jax.tree.leaves, (one["ptq"], other["ptq"])), strict=True))


MISTAKES = [
  ({"teacher": "alone"}, "config key 'stages.ptq.teacher' is 'alone', but a stage of kind 'post_training' trains"),
  ({"optimizer": {"learning_rate": 0.1}}, "config key 'stages.ptq.optimizer.learning_rate' is 0.1, but"),
  (
    {"epochs": 3},
    "config key 'stages.ptq.epochs' is 3, but a stage of kind 'post_training' trains nothing; expected no",
  ),
  ({"objective": {"hinton": {}}}, "config key 'stages.ptq.objective' is {'hinton': {}}, but"),
  ({"sparsity": {"name": "hold"}}, "config key 'stages.ptq.sparsity.name' is 'hold', but"),
  ({"augment": {"flip": True}}, "config key 'stages.ptq.augment.flip' is True, but"),
  ({"cut": {"from": "alone"}, "start": ""}, "config key 'stages.ptq.cut.from' is 'alone', but"),
  (
    {"start": ""},
    "config key 'stages.ptq.start' is empty, but a stage of kind 'post_training' trains nothing; expected",
  ),
  ({"quant": {}}, "config key 'stages.ptq.quant.rules' is empty; expected rules such as"),
  (
    {"quant": {"rules": (("*", "w8a8 learned"),)}},
    "has 'w8a8 learned' for '\\*', an estimator of training, but a stage of",
  ),
  (
    {"quant": {"rules": (("Conv*", "w4a8"), ("*", "w8a8"))}},
    "stage 'ptq': quantization rule 'Conv\\*' matches nothing",
  ),
  ({"quant": {"rules": (("*",),)}}, "expected \\(site glob, setting\\)"),
  ({"batch_size": 129}, "stage 'ptq': "),
  ({"kind": "post_traning"}, "unknown kind in 'stages.ptq.kind' 'post_traning'; did you mean 'post_training'"),
]


@pytest.mark.parametrize(("changes", "sentence"), MISTAKES)
def test_mistakes_are_found_before_anything_runs(tmp_path, changes, sentence):
  with pytest.raises(UserError, match=sentence):
    jobs.opened(tmp_path / "run", run=("alone", "ptq"), stages__ptq={**PTQ, **changes})
  assert not (tmp_path / "run").exists()


def test_pretrained_weights_are_enough(tmp_path):
  """A model with weights of a file needs no stage before it."""
  from safetensors.numpy import save_file

  rng = np.random.default_rng(0)
  arrays = {"Dense_0/kernel": (36, 8), "Dense_0/bias": (8,), "Dense_1/kernel": (8, 4), "Dense_1/bias": (4,)}
  save_file(
    {key: rng.normal(size=shape).astype(np.float32) for key, shape in arrays.items()}, tmp_path / "w.safetensors"
  )
  student = {**jobs.EXPERIMENT["models"]["student"], "weights": str(tmp_path / "w.safetensors")}
  context = jobs.opened(tmp_path / "run", run=("ptq",), models__student=student, stages__ptq={**PTQ, "start": ""})
  left = jobs.train(context)["ptq"]
  assert left.variables["params"]["Dense_0"]["kernel"].shape == (36, 8) and left.recipe.edits[-1]["rules"] == [
    ["*", "w8a8"]
  ]


def test_the_grid_of_pixels_is_one_of_integers(tmp_path):
  """An input on powers of two keeps the grid of its calibration."""
  rounding = {"rules": (("*", "w8, a4 power_of_two"),), "ends": "", "calibration_batches": 2}
  context = jobs.opened(tmp_path, **{**RUN, "stages__alone__epochs": 1, "stages__ptq": {**PTQ, "quant": rounding}})
  state = jobs.train(context)["ptq"].variables["quant_state"]["input"]
  jax.tree.map(np.testing.assert_array_equal, state["used"], state["seen"])
