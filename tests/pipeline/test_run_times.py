"""run.json: what it notes is kept with a checksum, and its loss is said and ends no run."""

import pytest

from leanax.core import files
from leanax.pipeline import run_times


def test_times_are_noted_in_order_and_forgotten(tmp_path, capsys):
  run_times.start(tmp_path)
  for name in ("b", "a", "c"):
    run_times.note(tmp_path, name, 1.5)
  run_times.forget(tmp_path, "a")
  run_times.forget(tmp_path, "none")
  run_times.start(tmp_path)
  found = run_times.read(tmp_path)
  assert list(found) == ["b", "c"] and found["b"]["seconds"] == 1.5 and found["b"]["finished"].endswith("+00:00")
  assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
  ("damage", "words"),
  [
    (lambda path: path.write_text(path.read_text().replace("1.5", "1.6")), "does not match its checksum"),
    (lambda path: path.write_text("{"), "holds no JSON object"),
    (lambda path: files.keep(path, {"name": "teacher", "bytes": 3}), "holds no times"),
    (lambda path: files.keep(path, {"teacher": {"seconds": 3}}), "holds no times"),
  ],
)
def test_damaged_times_are_said_once(tmp_path, capsys, damage, words):
  run_times.note(tmp_path, "a", 1.5)
  damage(tmp_path / "run.json")
  assert run_times.read(tmp_path) == run_times.read(tmp_path) == {}
  said = capsys.readouterr().err
  assert said.count("warning") == 1 and f"run.json' is damaged: it {words}; the report does not say when" in said


def test_lost_times_are_said_where_stages_were_finished(tmp_path, capsys):
  run_times.start(tmp_path)
  assert capsys.readouterr().err == ""
  (tmp_path / "run.json").unlink()
  files_of = tmp_path / "files"
  files_of.mkdir()
  files.keep(files_of / "teacher.json", {})
  run_times.start(tmp_path)
  assert capsys.readouterr().err.startswith("warning: there is no ") and run_times.read(tmp_path) == {}
