"""Files of a run that have changed are found or made again: the short and the long form of scripts/drills/flips.py."""

import json

import numpy as np
import pytest

from leanax import deploy
from leanax.core import files
from leanax.pipeline import build, trained
from scripts.drills import flips


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return flips.Run(tmp_path_factory.mktemp("flips") / "run")


def bad(counts):
  return {key: count for key, count in counts.items() if key[2] in flips.BAD}


@pytest.mark.slow
def test_changed_files_are_found(run):
  assert bad(flips.drill(run, 20, 16, seed=3)) == {}


def test_what_becomes_of_each_change(run):
  """The cases that matter most, whatever the random ones are."""
  step = next(name for name in run.files if name.startswith("checkpoints/int8/8/about/"))
  cases = {
    (flips.delete, "config.json", ""): flips.AGAIN,
    (flips.delete, "config.seal", ""): flips.AGAIN,
    (flips.delete, "metrics.jsonl", ""): flips.AGAIN,
    (flips.delete, "files/int8.tflite", ""): flips.AGAIN,
    (flips.delete, "files/int8.json", ""): flips.AGAIN,
    (flips.delete, "run.json", ""): flips.NAMED,
    (flips.replace, "files/int8.json", "files/teacher.json"): flips.AGAIN,
    (flips.replace, "files/latency.json", "files/teacher.json"): flips.NAMED,
    (flips.replace, "config.json", "files/teacher.json"): flips.AGAIN,
    (flips.swap, "files/int8.tflite", "files/teacher.tflite"): flips.AGAIN,
    (flips.swap, "models/int8.safetensors", "models/teacher.safetensors"): flips.REFUSED,
    (flips.rename, step, ""): flips.NAMED,
  }
  for (change, file, other), outcome in cases.items():
    found, words = flips.case(run, file, change, other or file, np.random.default_rng(0))
    assert found == outcome, (change.__name__, file, words)


def test_figures_are_those_of_the_model_that_is_there(run):
  """Of another model with sound checksums in its place; the file is exported anew as well."""
  path = run.folder / "models" / "int8.safetensors"
  before = files.kept(run.folder / "files" / "int8.json")
  model, more = trained.load(path)
  bias = model.variables["params"]["Dense_1"]["bias"]
  model.variables["params"]["Dense_1"]["bias"] = bias.at[2].set(1000.0)
  trained.save(path, model, **more)
  result = run.compress()
  after = files.kept(run.folder / "files" / "int8.json")
  assert set(after["decisions"]) == {2} and len(set(before["decisions"])) > 1
  assert result["rows"][1]["accuracy"] == after["accuracy"] != before["accuracy"]
  file = deploy.open_file(run.folder / "files" / "int8.tflite")
  assert {*file.run(build.dataset(run.config).test.images).argmax(-1)} == {2}
  run.put_back()


@pytest.mark.slow
def test_many_changed_files_are_found(run):
  assert bad(flips.drill(run, 1000, 400, seed=int(np.random.default_rng().integers(1 << 30)))) == {}


def test_the_drill_sees_what_is_not_checked(run, monkeypatch):
  """A digit of a figure that no checksum covers."""

  def digit(path, *_):
    row = json.loads(path.read_text())
    row["exports"][".tflite"]["file_accuracy"] /= 2
    path.write_text(json.dumps(row))

  figures = ("files/int8.json", digit, "files/teacher.json", None)
  assert flips.case(run, *figures)[0] == flips.AGAIN
  monkeypatch.setattr(files, "kept", lambda path, cure="": json.loads(path.read_text()) if path.is_file() else {})
  assert flips.case(run, *figures)[0] == flips.UNDETECTED
