"""The first number that is not finite, where it was planted."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from leanax.core.errors import UserError
from leanax.pipeline import diagnosis, stage
from leanax.pipeline.compress import open_run
from leanax.pipeline.config import loading


def experiment(bad="", data=None, **changes):
  """An experiment of one stage of four steps an epoch, of which `bad` says what is planted."""
  values = {
    "data": data or {"name": "tests.pipeline.unstable:numbers"},
    "models": {"student": {"name": "tests.pipeline.unstable:Plain", "kwargs": {"bad": bad}}},
    "stages": {"student": {"epochs": 2, "batch_size": 16, "export": (), **changes.pop("stage", {})}},
    "run": ("student",),
    "evaluations": 8,
    **changes,
  }
  return loading.resolve(ConfigDict(values))


def stopped(folder, config):
  """The sentence by which a run ends."""
  context = open_run(config, folder)
  with pytest.raises(UserError) as caught:
    stage.run_stage("student", context, {})
  assert "\n" not in str(caught.value) and str(caught.value).startswith("training stopped: ")
  return str(caught.value)


LARGE = {"name": "tests.pipeline.unstable:numbers", "kwargs": {"large": 3e38}}
TOKENS = {"name": "tests.pipeline.unstable:tokens", "kwargs": {"most": 9}}
TABLE = {"student": {"name": "tests.pipeline.unstable:Table"}}
NONE = {"hard_labels": {}, "mine": {"loss": "tests.pipeline.unstable:undefined", "weight": 0.1}}
PLANTED = {
  "parameter": ({"bad": "parameter"}, "is in 'middle/bias' before the first step"),
  "input": (
    {"data": LARGE, "preprocess": {"scale": 10.0}},
    "is in the inputs of 16 of 16 examples of the batch, after",
  ),
  "activation": ({"bad": "activation"}, "is in 'first/kernel:out' of the forward pass"),
  "table": ({"data": TOKENS, "models": TABLE}, "of the forward pass; "),
  "term": ({"stage": {"objective": NONE}}, "is the term 'mine' of the objective"),
  "gradient": ({"bad": "gradient"}, "is in the gradient of 'planted'"),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", PLANTED)
def test_the_first_step_names_where_it_was_planted(kind, tmp_path):
  changes, words = PLANTED[kind]
  said = stopped(tmp_path, experiment(**changes))
  assert " is nan at step 1; the first number that is not finite " in said and words in said
  assert "learning rate" not in said
  if kind == "table":
    assert said.endswith("the inputs are whole numbers from 0 to 8; is one beyond the rows of a table?")


STEEP = {"optimizer": {"name": "sgd", "learning_rate": 1000.0, "schedule": "constant"}, "epochs": 40}


def test_a_later_step_is_made_again_from_the_last_checkpoint_with_the_same_words(tmp_path, monkeypatch):
  """Weights that grow until float32 does not hold them: the step before is computed in numpy."""
  made, starts = [], []
  before, fit = diagnosis._before, diagnosis.engine.fit

  def noted(step, state, *rest, **more):
    starts.extend([] if "hooks" in more else [int(state.step)])
    return fit(step, state, *rest, **more)

  monkeypatch.setattr(diagnosis.engine, "fit", noted)
  monkeypatch.setattr(diagnosis, "_before", lambda *given: made.append(before(*given)) or made[-1])
  config = experiment(stage=STEEP, checkpoint_every=1, evaluations=160)
  said = stopped(tmp_path, config)
  step = int(said.split(" at step ")[1].split(";")[0])
  assert step > 1 and said.endswith(f"; {diagnosis.RATE}") and " of the forward pass" in said
  assert said == stopped(tmp_path, config)  # it goes on from its last checkpoint
  assert said == stopped(tmp_path / "whole", experiment(stage=STEEP, checkpoint_every=10**6, evaluations=160))
  fresh, resumed, whole = made
  assert int(fresh.step) == int(resumed.step) == int(whole.step) == step - 1
  assert starts == [step - 1, step - 1, 0]
  for name, leaf in whole.params["last"].items():
    assert np.array_equal(leaf, fresh.params["last"][name])
  for name, leaf in fresh.params["first"].items():
    assert np.isfinite(leaf).all() and np.array_equal(leaf, resumed.params["first"][name])
  # The three layers, on the largest input there is: what comes out is beyond float32 at the latest.
  x = np.ones(7)
  for layer in ("first", "middle", "last"):
    x = np.maximum(x @ np.abs(np.float64(fresh.params[layer]["kernel"])) + np.abs(fresh.params[layer]["bias"]), 0)
  assert x.max() > np.finfo(np.float32).max


def test_of_several_seeds_the_run_is_named(tmp_path):
  from leanax.pipeline.seeds import train_seeds

  config = experiment("parameter", seeds=2, seed=5, seeds_over="vmap")
  with pytest.raises(UserError, match="loss is nan at step 1 of the run with seed 5; .* shows the cause$"):
    train_seeds(config, tmp_path)


@pytest.mark.slow
def test_peers_are_not_taken_apart(tmp_path):
  both = {"hard_labels": {}, "hinton": {"temperature": 1.0}, "mine": NONE["mine"]}
  said = stopped(tmp_path, experiment(stage={"peers": 2, "objective": both}))
  assert "is in a loss or a gradient of several networks that train together; checkpoints of earlier steps" in said


def test_what_excludes_a_class_comes_after_what_is_no_number():
  x = np.float32([1, -np.inf])
  assert (
    diagnosis._worst({"a": x, "b": x[:1] * np.float32(np.nan), "c": x}) == "b"
    and diagnosis._worst({"a": x[:1], "b": x}) == "b"
  )
  assert diagnosis._worst({"a": x[:1], "b": np.int32([3])}) == diagnosis._worst({}) == ""
