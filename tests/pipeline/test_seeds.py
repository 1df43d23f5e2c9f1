"""Several seeds of one experiment: trained together they equal the runs one by one, and they resume."""

import json

import jax
import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from leanax.pipeline import fitting, trained
from leanax.pipeline.compress import compress, open_run
from leanax.pipeline.seeds import compress_seeds, single, train_seeds
from tests.integration import jobs


def model(folder, name="int8"):
  return trained.load(folder / "models" / f"{name}.safetensors")[0]


# At the other stages' rate last bits of sums grow to a tenth of the loss within twelve steps on codes.
SLOWLY = {"stages__int8__optimizer": {"learning_rate": 0.005}}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """The run of the second seed by itself."""
  folder = tmp_path_factory.mktemp("alone")
  return folder, compress(jobs.experiment(seed=1, **SLOWLY), folder)


@pytest.mark.parametrize("over", ["loop", "vmap", pytest.param("map", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_seeds_together_are_the_runs_one_by_one(tmp_path, alone, over):
  results = compress_seeds(jobs.experiment(seeds=2, seeds_over=over, **SLOWLY), tmp_path)
  assert [result["config"]["seed"] for result in results] == [0, 1]
  folder, result = alone
  for name in jobs.STAGES:
    runs = tmp_path / "seed1", folder
    actual, desired = (named_leaves(trained.trees(model(run, name).variables)[0]) for run in runs)
    for leaf, array in desired.items():
      # The last bit of a sum can move a value over the edge between two codes, and integers then go another way.
      gap = 0 if over == "loop" else 0.05 if name == "int8" else 2e-4
      np.testing.assert_allclose(actual[leaf], array, rtol=1e-6, atol=gap, err_msg=f"{name} {leaf}")
  lines = [(run / "metrics.jsonl").read_text().splitlines() for run in (tmp_path / "seed1", folder)]
  for actual, desired in zip(*lines, strict=True):
    actual, desired = json.loads(actual), json.loads(desired)
    assert actual.keys() == desired.keys()
    for key in desired:
      if key.endswith("/loss"):
        assert actual[key] == pytest.approx(desired[key], rel=0.03 if key.startswith("int8") else 1e-3)
  first, second = (named_leaves(trained.trees(model(tmp_path / seed).variables)[0]) for seed in ("seed0", "seed1"))
  assert all(np.any(array != second[leaf]) for leaf, array in first.items())
  assert [row["name"] for row in results[1]["rows"]] == [row["name"] for row in result["rows"]]


@pytest.mark.slow
def test_a_stopped_run_of_several_seeds_resumes(tmp_path, monkeypatch):
  config = jobs.experiment(run=("teacher", "distilled"), seeds=2, seeds_over="map")
  whole = compress_seeds(config, tmp_path / "whole")
  save = fitting.checkpoint.Checkpoints.save

  def stopping(self, step, *args, **more):
    save(self, step, *args, **more)
    if step == 8:
      self.__exit__(None, None, None)
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(fitting.checkpoint.Checkpoints, "save", stopping)
    with pytest.raises(KeyboardInterrupt):
      compress_seeds(config, tmp_path / "stopped")
  assert not (tmp_path / "stopped" / "seed0" / "models" / "teacher.safetensors").exists()
  again = compress_seeds(config, tmp_path / "stopped")
  for actual, desired in zip(again, whole, strict=True):
    assert actual["curves"] == desired["curves"]
    assert [row["accuracy"] for row in actual["rows"]] == [row["accuracy"] for row in desired["rows"]]
  found = json.loads((tmp_path / "whole" / "result.json").read_text())
  assert found["seeds"] == [0, 1] and list(found["run"]) == ["all seeds"]
  assert found["rows"][1]["accuracy"] == [one["rows"][1]["accuracy"] for one in whole]
  assert (tmp_path / "whole" / found["ship"]["file"]).is_file()
  page, text = ((tmp_path / "whole" / name).read_text() for name in ("report.html", "report.md"))
  assert f"Ship {found['recommended']} of seed" in page and "Means over the seeds 0, 1" in text


@pytest.mark.slow  # for time only
def test_a_live_teacher_is_each_runs_own(tmp_path):
  changes = {"run": ("teacher", "distilled"), "stages__distilled__cache_teacher": False}
  compress_seeds(jobs.experiment(seeds=2, seeds_over="vmap", **changes), tmp_path / "live")
  compress_seeds(jobs.experiment(seeds=2, seeds_over="vmap", run=changes["run"]), tmp_path / "cached")
  for seed in ("seed0", "seed1"):
    live, cached = (named_leaves(model(tmp_path / way / seed, "distilled").variables) for way in ("live", "cached"))
    for leaf, array in live.items():
      np.testing.assert_allclose(array, cached[leaf], atol=1e-5)


@pytest.mark.parametrize("unlabelled", [pytest.param(True, marks=pytest.mark.slow), False])
def test_each_seed_has_its_own_labels(tmp_path, unlabelled):
  """The labels that are kept differ between runs, and so do the teacher's stored logits."""
  few = {"labelled": 32, "unlabelled": unlabelled}
  objective = {"hard_labels": {"mask": "labelled"}, "hinton": {"weight": 1.0}}
  changes = {
    "run": ("teacher", "distilled"),
    "stages__distilled__examples": few,
    "stages__distilled__objective": objective,
    "stages__distilled__batch_size": 16,
  }
  together = train_seeds(jobs.experiment(seeds=2, seeds_over="vmap", **changes), tmp_path / "vmap")
  alone = train_seeds(jobs.experiment(seeds=2, **changes), tmp_path / "loop")
  for (_, actual), (_, desired) in zip(together, alone, strict=True):
    for one, other in zip(*(jax.tree.leaves(done["distilled"].variables) for done in (actual, desired)), strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-4)


def test_a_shared_stage_is_trained_once(tmp_path, capfd):
  config = jobs.experiment(run=("teacher", "distilled"), seeds=2, seeds_over="vmap", shared=("teacher",))
  (_, first), (_, second) = train_seeds(config, tmp_path)
  assert capfd.readouterr().err.count("teacher: step 12/12") == 1
  for actual, desired in zip(*(jax.tree.leaves(done["teacher"].variables) for done in (first, second)), strict=True):
    np.testing.assert_array_equal(actual, desired)
  leaves = zip(*(jax.tree.leaves(done["distilled"].variables) for done in (first, second)), strict=True)
  assert all(np.any(actual != desired) for actual, desired in leaves)
  with pytest.raises(UserError, match="unknown stage in 'shared' 'techer'; did you mean 'teacher'"):
    jobs.experiment(shared=("techer",))
  with pytest.raises(UserError, match="stage 'distilled' is in 'shared' and needs stage 'teacher', which is not"):
    jobs.experiment(shared=("distilled",))


def test_the_experiment_of_each_seed():
  configs = single(jobs.experiment(seed=5, seeds=3, seeds_over="vmap"))
  assert [(one.seed, one.seeds, one.seeds_over) for one in configs] == [(5, 1, "loop"), (6, 1, "loop"), (7, 1, "loop")]


@pytest.mark.parametrize(
  "changes, sentence",
  [
    ({"seeds_over": "vmp"}, "unknown way in 'seeds_over' 'vmp'; did you mean 'vmap'"),
    ({"seeds_over": "map", "parallel": "pmap"}, "'seeds_over' is 'map', which runs on one device"),
  ],
)
def test_mistakes_are_named(changes, sentence):
  with pytest.raises(UserError, match=sentence):
    jobs.experiment(seeds=2, **changes)


def test_a_directory_of_one_seed_is_not_one_of_several(tmp_path):
  open_run(jobs.experiment(run=("teacher",)), tmp_path)
  with pytest.raises(UserError, match="holds a run of another config: 'seeds' was 1 and is 2 here"):
    compress_seeds(jobs.experiment(run=("teacher",), seeds=2), tmp_path)
  with pytest.raises(UserError, match="config key 'seeds'"):
    jobs.experiment(seeds=0)
