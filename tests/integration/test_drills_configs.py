"""The drill of hostile values: a sample of it, and that it finds what it is for."""

import dataclasses
import random

import pytest

from leanax.core.errors import UserError
from leanax.pipeline.config import references
from leanax.pipeline.config.experiment import Preprocess
from scripts.drills import configs, hostile


def test_a_sample_of_hostile_values_is_refused_in_sentences_or_prepared():
  chosen = [case for case in hostile.cases() if case.base == "plain"]
  counts, failures = configs.drill(random.Random(0).sample(chosen, 250), 0, 0)
  assert [(case, outcome) for case, outcome in failures] == []
  assert counts["refused"] > 200 and counts["accepted"] > 5 and counts.keys() == {"refused", "accepted"}


@pytest.mark.slow
def test_every_hostile_value():
  with configs.bounded():
    counts, failures = configs.drill(hostile.cases(), 60, 0)
  assert failures == [] and counts["trained"] == 60


def test_the_drill_has_every_key_and_both_forms():
  found = hostile.cases()
  keys = {case.key for case in found if case.base == "rich" and case.text}
  assert {"seed", "stages.student.optimizer.learning_rate", "preprocess.std", "models.student.kwargs.widths"} <= keys
  assert len(keys) > 100 and {case.base for case in found} == {"plain", "rich"}


def outcome(key, value, base="plain", text=False):
  return configs.tried(hostile.Case(base, key, value, text))[0].kind


def test_the_drill_finds_what_it_is_for(monkeypatch):
  """Each kind of failure, planted."""
  assert outcome("seed", 3) == "accepted" and outcome("seed", -1) == "refused"
  monkeypatch.setattr(configs, "SECONDS", 0.2)

  def fails(error):
    def prepared(config, folder):
      if isinstance(error, Exception):
        raise error
      while True:
        pass

    return prepared

  for error, kind in (
    (ValueError("x"), "traceback"), (MemoryError(), "memory"), (RuntimeError("RESOURCE_EXHAUSTED: 1"), "memory"),
    (UserError("no"), "unnamed"), (UserError("two\nlines of seed"), "unnamed"), (None, "hang"),
  ):  # fmt: skip
    monkeypatch.setattr(configs, "prepared", fails(error))
    assert outcome("seed", 3) == kind


@pytest.mark.slow
def test_the_drill_trains_and_finds_what_has_no_effect_and_what_is_not_finite(tmp_path, monkeypatch):
  trainer = configs.Trainer(tmp_path)
  good = hostile.Case("plain", "stages.student.optimizer.learning_rate", 0.02, False)
  assert trainer.trained(good, configs.changed(good)).words == "trained"
  large = dataclasses.replace(configs.changed(good), preprocess=Preprocess(scale=3e38))
  assert trainer.trained(good, large).kind == "not finite"
  monkeypatch.setattr(references, "STAGE", ())
  idle = hostile.Case("plain", "stages.student.optimizer.momentum", 0.5, False)
  assert trainer.trained(idle, configs.changed(idle)).kind == "no effect"
