"""The lines of metrics.jsonl come back with the checkpoint or the model that they were kept with."""

import pytest

from leanax.core.errors import UserError
from leanax.pipeline import job, saving, stage
from leanax.pipeline import trained as models
from tests.integration import jobs

SAID = "metrics.jsonl lacks lines of 'teacher', or has others; they are made again from what was saved"


def train(folder):
  context = jobs.opened(folder, run=("teacher",))
  jobs.train(context)
  return context


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """An unbroken run, and its metrics.jsonl."""
  folder = tmp_path_factory.mktemp("unbroken")
  return train(folder), (folder / "metrics.jsonl").read_bytes()


def stopped(folder):
  with jobs.interrupted(11):
    train(folder)
  return folder / "metrics.jsonl"


@pytest.mark.sampled(3)
@pytest.mark.parametrize("damage", ["none", "gone", "a digit", "cut"])
def test_of_a_stopped_stage(whole, tmp_path, capsys, damage):
  path = stopped(tmp_path)
  text = path.read_text()
  changed = {"none": text, "gone": "", "a digit": text.replace("0.", "1.", 1), "cut": text[:200]}[damage]
  path.write_text(changed) if changed else path.unlink()
  capsys.readouterr()
  train(tmp_path)
  assert path.read_bytes() == whole[1] and (SAID in capsys.readouterr().err) == (damage != "none")


def test_of_a_checkpoint_from_before_they_were_kept(whole, tmp_path, monkeypatch, capsys):
  path = stopped(tmp_path)
  monkeypatch.setattr(saving, "lines", lambda extra: [])
  train(tmp_path)
  assert path.read_bytes() == whole[1] and SAID not in capsys.readouterr().err


def test_of_a_model_from_before_they_were_kept(whole, tmp_path, capsys):
  """The file's own stay as they are; one that cannot be read has nothing to come back from."""
  context, text = jobs.opened(tmp_path, run=("teacher",)), whole[1]
  model, kept = models.load(job.model_file(whole[0].folder, "teacher"))
  assert {*kept} == {"stage", "lines"}
  models.save(job.model_file(tmp_path, "teacher"), model, stage="teacher")
  (tmp_path / "metrics.jsonl").write_bytes(text)
  jobs.train(context)
  assert (tmp_path / "metrics.jsonl").read_bytes() == text and SAID not in capsys.readouterr().err
  (tmp_path / "metrics.jsonl").write_bytes(text.replace(b'"', b"", 1))
  with pytest.raises(UserError, match="metrics.jsonl, line 1: expected an object like"):
    jobs.train(context)


def test_a_model_under_the_name_of_another_stage_is_refused(whole, tmp_path):
  context = jobs.opened(tmp_path)
  model, _ = models.load(job.model_file(whole[0].folder, "teacher"))
  models.save(job.model_file(tmp_path, "teacher"), model, stage="distilled", lines="")
  with pytest.raises(UserError, match="teacher.safetensors holds the model of stage 'distilled'; expected that of 'te"):
    stage.run_stage("teacher", context, {})
