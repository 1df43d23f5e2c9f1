"""A directory belongs to one config."""

import dataclasses
import json

import ml_collections
import pytest

from leanax.core import files
from leanax.core.errors import UserError
from leanax.pipeline import workdir
from tests.integration import jobs


def example(**changes):
  return ml_collections.ConfigDict(
    {"seed": 0, "hidden": (3, 4), "optimizer": {"name": "adam"}, "limit": None, **changes}
  )


def test_resolved_is_plain_json():
  plain = workdir.resolved(example())
  assert plain == {"seed": 0, "hidden": [3, 4], "optimizer": {"name": "adam"}, "limit": None}
  assert json.loads(json.dumps(plain)) == plain


@pytest.mark.parametrize(
  "value", [float("nan"), print, {1, 2}, set(range(5000))], ids=["nan", "function", "set", "long"]
)
def test_values_that_json_cannot_hold_are_named(value):
  config = example()
  with config.unlocked():
    config.optimizer = {"name": (1, value)}
  with pytest.raises(UserError, match=r"config key 'optimizer.name.1' must be a plain value") as refused:
    workdir.resolved(config)
  assert len(str(refused.value)) < 400


def test_fingerprint_depends_on_every_value_and_on_nothing_else():
  assert workdir.fingerprint(example()) == workdir.fingerprint(json.loads(json.dumps(workdir.resolved(example()))))
  assert len({workdir.fingerprint(example(**c)) for c in ({}, {"seed": 1}, {"hidden": (3, 5)}, {"limit": 0})}) == 4


def test_claim_writes_once_and_then_compares(tmp_path):
  folder = tmp_path / "a" / "b"
  assert workdir.claim(folder, example()) == workdir.claim(folder, example()) == files.kept(folder / "config.json")
  with pytest.raises(
    UserError, match=r"holds a run of another config: 'seed' was 0 and is 1 here; use another --workdir"
  ):
    workdir.claim(folder, example(seed=1))
  with pytest.raises(UserError, match=r"'extra' is set here only"):
    workdir.claim(folder, example(extra=1))


def test_a_config_that_is_lost_or_changed_is_proven_or_refused(tmp_path, capsys):
  file, seal = tmp_path / "config.json", tmp_path / "config.seal"
  workdir.claim(tmp_path, example())
  whole, sealed = file.read_text(), seal.read_text()
  (tmp_path / "models").mkdir()
  (tmp_path / "models" / "teacher.safetensors").write_text("")
  changes = {
    "{": "config.json' is damaged: it holds no JSON object; put it back, or use another --workdir",
    whole.replace('"seed": 0', '"seed": 1'): "config.json' is damaged: it does not match its checksum; put it back",
    "": "holds models and no config.json, which says what that is of; put it back, or use another --workdir",
  }
  for text, sentence in changes.items():
    # The seal says that it held this config, and no other one.
    file.write_text(text) if text else file.unlink()
    with pytest.raises(UserError, match=sentence):
      workdir.claim(tmp_path, example(seed=1))
    workdir.claim(tmp_path, example())
    assert file.read_text() == whole
    assert (
      capsys.readouterr().err
      == f"warning: {str(file)!r} was lost or changed; it is made again, as config.seal proves it was\n"
    )
    # Without it nobody knows.
    file.write_text(text) if text else file.unlink()
    seal.unlink()
    with pytest.raises(UserError, match=sentence):
      workdir.claim(tmp_path, example())
    file.write_text(whole)
    workdir.claim(tmp_path, example())
    assert seal.read_text() == sealed and capsys.readouterr().err == ""


def test_a_seal_that_cannot_be_made_is_none_of_an_earlier_config(tmp_path, monkeypatch):
  """Else it would prove a config that the directory does not have any more."""
  from leanax.engine.data import prepared

  workdir.claim(tmp_path, jobs.experiment())
  other = jobs.experiment(stages__int8__epochs=4)
  with monkeypatch.context() as patch:
    patch.setattr(prepared, "cache_root", lambda _: tmp_path / "config.json")
    workdir.claim(tmp_path, other)
  assert not (tmp_path / "config.seal").exists() and workdir.saved(tmp_path) == other


def test_a_config_from_before_checksums_is_taken(tmp_path):
  workdir.claim(tmp_path, example())
  whole = (tmp_path / "config.json").read_text()
  (tmp_path / "config.json").write_text(json.dumps(workdir.resolved(example())))
  workdir.claim(tmp_path, example())
  assert (tmp_path / "config.json").read_text() == whole


def test_a_run_from_before_a_key_was_added_resumes(tmp_path):
  """A key that its config.json lacks has its default; a key that was never there is a difference."""
  config = jobs.experiment()
  whole = workdir.claim(tmp_path, config)
  for stage in whole["stages"].values():
    del stage["precision"], stage["optimizer"]["ema"]
  del whole["latency_runs"]
  (tmp_path / "config.json").write_text(json.dumps(whole))
  workdir.claim(tmp_path, dataclasses.replace(config, latency_runs=200))
  assert workdir.saved(tmp_path) == dataclasses.replace(config, latency_runs=200)


def test_how_stages_are_exported_may_change(tmp_path):
  first = workdir.claim(tmp_path, jobs.experiment())
  later = {"most_lost": 2.0, "licence": "MIT", "about": "noise"}
  other = jobs.experiment(stages__int8__export=(), stages__teacher__export_failure="report", **later)
  assert workdir.claim(tmp_path, other) == files.kept(tmp_path / "config.json") != first
  assert workdir.saved(tmp_path) == other and workdir.is_own(tmp_path)


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ({"name": "other"}, "'name' was 'tiny' and is 'other' here; use another --workdir"),
    ({"seeds": 2}, "'seeds' was 1 and is 2 here"),
    ({"shared": ("teacher",)}, r"'shared' was \[\] and is \['teacher'\] here"),
  ],
)
def test_a_directory_of_another_experiment_is_refused(tmp_path, change, sentence):
  workdir.claim(tmp_path, jobs.experiment())
  before = (tmp_path / "config.json").read_bytes()
  with pytest.raises(UserError, match=f"holds a run of another config: {sentence}"):
    workdir.claim(tmp_path, jobs.experiment(**change))
  assert (tmp_path / "config.json").read_bytes() == before


def test_claim_refuses_a_directory_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot be written"):
    workdir.claim(tmp_path / "file" / "x", example())
