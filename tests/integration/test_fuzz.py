"""A sample of the drills with mutated files: every reader reads a file or refuses it in one sentence."""

import random

import pytest

from leanax.core.errors import UserError
from scripts.drills.fuzz import drill, mutations

# Of `packed` and `pth` the tests beside their readers have samples.
CASES = {
  **{"safetensors": 50, "weights": 300, "orbax": 8, "workdir": 80, "logits": 200, "images": 300},
  **{"tflite": 150, "onnx": 150, "stablehlo": 6},
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", CASES)
def test_mutated_files_are_read_or_refused(name):
  found = drill.run(name, range(CASES[name]), seed=3)
  assert [line for line in found if line["failed"]] == []
  assert len({line["outcome"] for line in found}) >= min(3, CASES[name] // 4)


def test_every_format_has_a_sample():
  assert {*CASES, "packed", "pth"} == {*drill.FORMATS}


def test_a_case_is_the_same_file_each_time():
  files = drill.cases("weights").seeds()
  assert [drill.mutant("weights", files, case, 1) for case in range(20)] == [
    drill.mutant("weights", files, case, 1) for case in range(20)
  ]


def test_a_folder_is_a_file_and_back():
  files = {"a/b.json": b'{"a": [1, 2]}', "c": bytes(range(256))}
  assert mutations.files_of(mutations.folder(files)) == files
  changed = [mutations.files_of(mutations.in_folder(random.Random(k), mutations.folder(files), [])) for k in range(50)]
  assert sum(one != files for one in changed) > 30


def refused(text):
  raise UserError(text)


def test_a_reader_that_raises_is_a_failure(monkeypatch):
  """Of each kind that the drill looks for: another exception, a sentence that is none, a case that takes too long."""
  module = drill.cases("weights")
  for reader in (lambda place: 1 / 0, lambda place: refused("two\nlines"), lambda place: refused("x" * 2000)):
    monkeypatch.setattr(module, "case", lambda content, reader=reader: mutations.read(content, reader))
    monkeypatch.setattr(module, "seeds", lambda: [mutations.folder({"a": b"x"})])
    monkeypatch.setattr(module, "mutant", lambda draw, files: files[0])
    with pytest.raises((ZeroDivisionError, AssertionError)):
      drill.run("weights", range(1), 0)
