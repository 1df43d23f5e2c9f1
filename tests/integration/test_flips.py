"""Files of a run that have changed are found or made again: the short and the long form of scripts/drills/flips.py."""

import json

import numpy as np
import pytest

from leanax.core import files
from scripts.drills import flips


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return flips.Run(tmp_path_factory.mktemp("flips") / "run")


def bad(counts):
  return {key: count for key, count in counts.items() if key[2] in flips.BAD}


def test_changed_files_are_found(run):
  assert bad(flips.drill(run, 20, 16, seed=3)) == {}


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
