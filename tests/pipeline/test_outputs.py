"""Stages of models with several outputs: terms name what they read, and everything else reads the logits."""

import sys

import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.pipeline import build, job, stage, trained
from leanax.pipeline.compress import compress
from tests.integration import jobs

USERS = """
import flax.linen as nn


class Net(nn.Module):
  hidden: int = 8

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.relu(nn.Dense(self.hidden, name="body")(x.reshape(x.shape[0], -1)))
    return {"scores": nn.Dense(4, name="scores")(x), "boxes": nn.Dense(6, name="boxes")(x)}
"""
MODEL = {"name": "several_nets:Net", "kwargs": {"hidden": 8}, "output": "scores"}
BOTH = {
  "hinton": {"temperature": 2.0},
  "boxes": {"loss": "logit_l2", "output": "boxes"},
  "fitnet": {"student": "body/kernel:out", "teacher": "body/kernel:out"},
}
GIVEN = {
  "models__teacher": {**MODEL, "kwargs": {"hidden": 12}},
  "models__student": MODEL,
  "stages__distilled__objective": BOTH,
}


@pytest.fixture(autouse=True)
def users(tmp_path, monkeypatch):
  folder = tmp_path / "elsewhere"
  folder.mkdir()
  (folder / "several_nets.py").write_text(USERS)
  monkeypatch.syspath_prepend(str(folder))
  yield
  sys.modules.pop("several_nets", None)


def test_terms_read_the_outputs_that_they_name(tmp_path):
  context = jobs.opened(tmp_path / "run", **GIVEN)
  done = jobs.train(context)
  series = stage.curves("distilled", context)
  for name in ("boxes", "hinton", "fitnet"):
    assert series[name][-1][1] < series[name][0][1], name
  assert series["train_accuracy"] and series["validation_accuracy"]
  assert trained.predict(done["distilled"], context.data.test.images).shape[-1] == 4
  again = trained.functions(trained.load(job.model_file(context.folder, "distilled"), [MODEL["name"]])[0].recipe)
  assert set(trained.outputs(again, done["distilled"].variables, np.zeros((1, 6, 6, 1), np.float32))) == {
    "scores",
    "boxes",
  }


@pytest.mark.slow  # for time only
def test_the_saved_model_of_several_outputs_gives_the_logits(tmp_path):
  """A file, a quantized stage and stored logits are of the logits."""
  rows = compress(
    jobs.experiment(**GIVEN | {"stages__distilled__objective": jobs.DISTIL, "run": jobs.STAGES}), tmp_path / "run"
  )["rows"]
  assert rows[-1]["codes_differ"] is not None and rows[-1]["accuracy"] > 0.4
  assert list((tmp_path / "run" / "teacher_logits").iterdir())


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"models__student__output": ""}, "has several outputs, 'boxes', 'scores'; expected the one with a logit for each"),
    ({"models__student__output": "score"}, "unknown output of model 'several_nets:Net'.*scores"),
    ({"stages__distilled__objective__boxes__output": "box"}, "unknown output of term 'boxes'.*boxes"),
    (
      {"models__teacher": {"name": "zoo.mlp:MLP", "kwargs": {"widths": (8,), "classes": 4}}},
      "'boxes' of a teacher, an",
    ),
    ({"stages__distilled__teacher_classes": (0, 1, 2, 3)}, "'boxes' of a teacher; expected one teacher"),
  ],
)
def test_mistakes_are_one_sentence(tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    jobs.opened(tmp_path / "run", **GIVEN | changes)
  assert build.objective("s", {"hard_labels": {"output": "a", "ignore_label": 255}}).terms[0].ignore_label == 255
