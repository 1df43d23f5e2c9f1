"""A directory under a changed config: what stands, what is made again, and that nothing of two configs is mixed."""

import json

import pytest

from leanax.core import files
from leanax.core.errors import UserError
from leanax.pipeline import reuse, workdir
from leanax.pipeline.compress import compress
from leanax.pipeline.job import model_file
from tests.integration import jobs

ALL = list(jobs.STAGES)


def gone(**changes):
  """The stages of the tiny job that a change of its config makes again."""
  one, other = jobs.experiment(), jobs.experiment(**changes)
  return list(reuse.changed(one, other, workdir.resolved))


@pytest.mark.parametrize(
  ("change", "stages"),
  [
    ({"stages__int8__epochs": 4}, ["int8"]),
    ({"stages__alone__epochs": 4}, ["alone"]),
    ({"stages__pruned__optimizer": {"learning_rate": 0.1}}, ["pruned", "int8"]),
    ({"stages__distilled__objective": {"hinton": {"temperature": 2.0}}}, ["distilled", "pruned", "int8"]),
    ({"stages__teacher__epochs": 4}, ["teacher", "distilled", "pruned", "int8"]),
    ({"models__teacher__kwargs": {"widths": (16,), "classes": 4}}, ["teacher", "distilled", "pruned", "int8"]),
    ({"models__student__kwargs": {"widths": (9,), "classes": 4}}, ["alone", "distilled", "pruned", "int8"]),
    ({"models__more": {"name": "zoo.mlp:MLP"}}, []),
    ({"run": ("teacher",), "checkpoint_every": 7, "keep": 1, "latency_runs": 6}, []),
  ],
)
def test_what_a_change_makes_again(change, stages):
  assert gone(**change) == stages


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"data__limit": 64}, "'data.limit' was 0 and is 64 here"),
    ({"preprocess": {"mean": (0.5,)}}, r"'preprocess.mean' was \[0.0\] and is \[0.5\] here"),
    ({"seed": 1}, "'seed' was 0 and is 1 here"),
    ({"parallel": "mesh"}, "'parallel' was 'jit' and is 'mesh' here"),
  ],
)
def test_what_is_of_every_stage_is_refused_and_nothing_goes(tmp_path, change, said):
  folder = written(tmp_path, "teacher", "int8")
  before = held(folder)
  with pytest.raises(UserError, match=f"holds a run of another config: {said}; use another --workdir"):
    workdir.claim(folder, jobs.experiment(**change))
  assert held(folder) == before and workdir.saved(folder) == jobs.experiment()


def test_a_teacher_that_is_described_belongs_to_its_stage():
  beside = {"stages__distilled__teacher_mode": "together", "run": ("alone", "distilled")}
  one, other = (jobs.experiment(stages__teacher__epochs=epochs, **beside) for epochs in (3, 4))
  found = reuse.changed(one, other, workdir.resolved)
  assert found["distilled"] == "'stages.teacher.epochs' was 3 and is 4 here" and "alone" not in found


SHORT = {"run": ("teacher", "alone", "distilled"), **{f"stages__{name}__epochs": 1 for name in ALL}}


def model(folder, name):
  return model_file(folder, name).read_bytes()


def lines(folder):
  return sorted((folder / "metrics.jsonl").read_text().splitlines())


def numbers(result):
  """The rows of a result without what a clock measures."""
  clocks = ("latency", "latency_us", "milliseconds", "exports")
  return [{key: value for key, value in row.items() if key not in clocks} for row in result["rows"]]


@pytest.mark.slow
def test_a_changed_stage_is_made_again_and_the_others_stand(tmp_path, capfd):
  """What a directory holds after a change is what a fresh one holds: no row, curve or file of two configs."""
  used, fresh = tmp_path / "used", tmp_path / "fresh"
  compress(jobs.experiment(**SHORT), used)
  before = {name: model_file(used, name).stat().st_mtime_ns for name in SHORT["run"]}
  capfd.readouterr()
  other = jobs.experiment(**{**SHORT, "stages__alone__epochs": 2, "latency_runs": 1})
  actual, said = compress(other, used), capfd.readouterr().err.splitlines()
  assert [line for line in said if ": stage '" in line] == [
    f"{used}: stage 'teacher' is kept",
    f"{used}: stage 'alone' is trained again: 'stages.alone.epochs' was 1 and is 2 here; its model is in previous",
    f"{used}: stage 'distilled' is kept",
  ]
  again = {name: model_file(used, name).stat().st_mtime_ns for name in SHORT["run"]}
  assert [name for name in before if before[name] != again[name]] == ["alone"]
  desired = compress(other, fresh)
  assert actual["curves"] == desired["curves"] and actual["config"] == desired["config"]
  assert numbers(actual) == numbers(desired)
  assert lines(used) == lines(fresh)
  for name in SHORT["run"]:
    assert model(used, name) == model(fresh, name)
  assert list(actual["run"]) == ["teacher", "distilled", "alone"]


def written(folder, *names):
  """A directory of the tiny job with files that stand for those of finished stages."""
  workdir.claim(folder, jobs.experiment())
  for name in names:
    for file in (f"models/{name}.safetensors", f"files/{name}.json", f"files/{name}.tflite", f"checkpoints/{name}/4/x"):
      (folder / file).parent.mkdir(parents=True, exist_ok=True)
      (folder / file).write_text("")
  for file in ("result.json", "report.html", "report.md", "files/latency.json"):
    (folder / file).write_text("{}")
  files.keep(folder / "run.json", {name: {"finished": "2026-11-28T16:20:00+00:00", "seconds": 1.0} for name in names})
  (folder / "metrics.jsonl").write_text("".join(f'{{"step": 2, "{name}/loss": 1.0}}\n' for name in names))
  return folder


def held(folder):
  return sorted(
    str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "config" not in path.name
  )


def test_whatever_is_of_a_changed_stage_goes(tmp_path, capsys):
  folder = written(tmp_path, "teacher", "pruned", "int8")
  workdir.claim(folder, jobs.experiment(stages__int8__epochs=4))
  assert held(folder) == sorted(
    [f"{kind}/{name}{end}" for name in ("teacher", "pruned")
     for kind, end in (("models", ".safetensors"), ("files", ".json"), ("files", ".tflite"), ("checkpoints", "/4/x"))]
    + ["metrics.jsonl", "previous/int8.safetensors", "run.json"]
  )  # fmt: skip
  assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == [
    {"step": 2, "teacher/loss": 1.0},
    {"step": 2, "pruned/loss": 1.0},
  ]
  assert list(files.kept(folder / "run.json")) == ["teacher", "pruned"]
  assert workdir.saved(folder) == jobs.experiment(stages__int8__epochs=4)
  capsys.readouterr()
  # Rows compare with the first stage: with another one they are measured again.
  workdir.claim(folder, jobs.experiment(stages__int8__epochs=4, run=("alone", "teacher", "distilled", "pruned")))
  assert "files/teacher.json" not in held(folder) and "models/teacher.safetensors" in held(folder)
  assert capsys.readouterr().err == ""
  # What is not in the run is of its config, too.
  workdir.claim(folder, jobs.experiment(stages__int8__epochs=4, run=("teacher",), stages__pruned__batch_size=16))
  assert "models/pruned.safetensors" not in held(folder) and "models/teacher.safetensors" in held(folder)


def test_a_program_that_dies_while_it_removes_leaves_stages_of_one_config(tmp_path, monkeypatch):
  folder = written(tmp_path, "teacher", "distilled", "int8")
  other = jobs.experiment(stages__teacher__epochs=4)
  remove = reuse._remove

  def dies(folder, name):
    remove(folder, name)
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(reuse, "_remove", dies)
    with pytest.raises(KeyboardInterrupt):
      workdir.claim(folder, other)
  assert workdir.saved(folder) == jobs.experiment()  # as all that is left is
  workdir.claim(folder, other)
  assert not [name for name in held(folder) if name.startswith(("models", "files", "checkpoints"))]
