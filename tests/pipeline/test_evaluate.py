"""Models of a run are found again from its directory."""

import pytest

from leanax.core.errors import UserError
from leanax.pipeline import evaluate, workdir
from tests.integration import jobs


def test_the_config_of_a_run_is_read_as_it_was(tmp_path):
  config = jobs.experiment()
  workdir.claim(tmp_path, config)
  again = workdir.saved(tmp_path)
  assert again == config
  assert workdir.fingerprint(again) == workdir.fingerprint(config)


def test_the_last_finished_stage_is_found(tmp_path):
  workdir.claim(tmp_path, jobs.experiment())
  with pytest.raises(UserError, match="holds no finished stage"):
    evaluate.find_model(tmp_path)
  with pytest.raises(UserError, match="holds no finished stage"):
    evaluate.evaluate(tmp_path)
  (tmp_path / "models").mkdir()
  for name in ("distilled", "teacher", "other"):
    (tmp_path / "models" / f"{name}.safetensors").touch()
  assert evaluate.find_model(tmp_path) == ("distilled", tmp_path / "models" / "distilled.safetensors")
  assert evaluate.find_model(tmp_path, "teacher")[0] == "teacher"
  with pytest.raises(UserError, match="unknown finished stage 'int8'; expected one of distilled, teacher"):
    evaluate.find_model(tmp_path, "int8")


def test_a_directory_without_a_run_is_refused(tmp_path):
  with pytest.raises(UserError, match=r"holds no run: there is no config.json in it"):
    workdir.saved(tmp_path)
  (tmp_path / "config.json").write_text("[")
  with pytest.raises(UserError, match="is not JSON; was it changed by hand"):
    workdir.saved(tmp_path)
