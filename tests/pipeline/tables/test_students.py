"""Tables of students: the figures, matching biases to the prior, and the page."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.special

from leanax.pipeline.tables import reproduce, students
from tests.integration import jobs


def test_the_prior_is_matched():
  logits = np.random.default_rng(0).normal(size=(200, 5))
  shift = students.match_prior(logits, [1, 3], 0.6)
  logits[:, [1, 3]] += shift
  assert scipy.special.softmax(logits, -1)[:, [1, 3]].sum(-1).mean() == pytest.approx(0.6, abs=1e-9)


def test_a_student_is_compared_with_all_teachers_in_its_classes(tmp_path, monkeypatch):
  context = jobs.opened(tmp_path)
  rng, test = np.random.default_rng(0), context.data.test
  predicted = {name: rng.normal(size=(len(test.labels), 4)).astype(np.float32) for name in ("a", "b", "student")}
  monkeypatch.setattr(students.models, "predict", lambda one, images: predicted["student"][: len(images)])
  given = context.config.stages["distilled"]
  given = dataclasses.replace(given, teacher="a, b", ensemble="logits", teacher_classes=(2, 0, 1, 3))
  config = dataclasses.replace(context.config, stages={**context.config.stages, "distilled": given})
  row = students.judge("distilled", config, {"distilled": None}, predicted, context.data.validation, test)
  mean = ((predicted["a"] + predicted["b"]) / 2)[:, [2, 0, 1, 3]]
  assert row["agreement"] == pytest.approx(np.mean(mean.argmax(-1) == predicted["student"].argmax(-1)))
  given = dataclasses.replace(given, ensemble="probabilities")
  config = dataclasses.replace(context.config, stages={**context.config.stages, "distilled": given})
  row = students.judge("distilled", config, {"distilled": None}, predicted, context.data.validation, test)
  p = [np.exp(predicted[name] - np.log(np.exp(predicted[name]).sum(-1, keepdims=True))) for name in ("a", "b")]
  shown = (p[0] + p[1])[:, [2, 0, 1, 3]]
  assert row["agreement"] == pytest.approx(np.mean(shown.argmax(-1) == predicted["student"].argmax(-1)))


@pytest.mark.slow
def test_a_table_of_students(tmp_path, monkeypatch):
  stages = {
    **jobs.EXPERIMENT["stages"],
    "without": {**jobs.EXPERIMENT["stages"]["distilled"], "examples": {"without": (2,)}},
  }
  config = jobs.write(tmp_path / "tiny.py", run=("teacher", "distilled", "without"), shared=("teacher",), stages=stages)
  part = reproduce.Part(str(config), "Tiny students", "distilled", "A note.")
  monkeypatch.setitem(reproduce.TABLES, "tiny", {"cpu": (part, part._replace(title="Again", against=""))})
  page = reproduce.reproduce("tiny", "cpu", 2, tmp_path / "out")
  table = json.loads((tmp_path / "out" / "table.json").read_text())["parts"][0]
  rows = {row["name"]: row for row in table["stages"]}
  assert list(rows) == ["teacher", "distilled", "without"]
  assert rows["teacher"]["accuracy"][0] == rows["teacher"]["accuracy"][1] and "agreement" not in rows["teacher"]
  assert {"agreement", "agreement_5", "divergence", "calibration", "validation"} <= set(rows["distilled"])
  assert all(value == 1.0 for value in rows["distilled"]["agreement_5"])  # of four classes
  assert len(rows["without"]["matched"]) == 2 and np.all(np.array(rows["without"]["shift"]) > 0)
  assert "## Tiny students" in page and "## Again" in page and "A note." in page
  assert "| stage | test accuracy, % | minus distilled | biases matched to the prior, % |" in page
  assert page.count("2 seeds; teacher: one run for all seeds; 128 training and 64 test examples") == 2
