"""Early stopping: where a stage ends, which state it keeps, and that a stopped one resumes as the unbroken one."""

import json

import jax
import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from leanax.engine.metrics import accuracy, mae
from leanax.pipeline import fitting, patience, stage, trained
from leanax.pipeline.compress import compress
from tests.integration import jobs


@pytest.mark.parametrize(
  ("accuracies", "place", "over"),
  [
    ([0.5], 0, {}),
    ([0.5, 0.4], 0, {1}),
    ([0.5, 0.5, 0.5], 0, {1, 2}),  # equal is not better
    ([0.5, 0.4, 0.6], 2, {}),
    ([0.1, 0.6, 0.5, 0.6, 0.2], 1, {1, 2, 3}),
  ],
)
def test_when_it_is_over(accuracies, place, over):
  curve = [(2 * i, accuracy) for i, accuracy in enumerate(accuracies, 1)]
  assert patience.best(curve, accuracy()) == place
  assert {most for most in range(5) if patience.is_over(curve, most, accuracy())} == set(over)
  assert not patience.is_over([], 1, accuracy())
  # Of a metric of which lower is better it is over as of the negative one.
  upside_down = [(step, -value) for step, value in curve]
  assert patience.best(upside_down, mae()) == place
  assert {most for most in range(5) if patience.is_over(upside_down, most, mae())} == set(over)
  found = patience.ended(upside_down, 99, mae())
  assert found["kept_step"] == curve[place][0] and found["validation_mae"] == -curve[place][1]


# What the validation split is said to give at each evaluation, of which there is one every two of the twelve steps.
SAID = [0.3, 0.6, 0.5, 0.7, 0.7, 0.2]
CASES = {1: (6, 4), 2: (12, 8), 9: (12, 8)}  # patience: (last step, the step whose state is kept)
RUN = {"run": ("alone",)}


@pytest.fixture
def said(monkeypatch):
  """Makes validation accuracies what the test says, and notes the models that they were taken of."""
  seen = {}
  validated = fitting._validated

  def chosen(ready, state, means, validation, metric):
    step = int(state.step)
    seen[step] = jax.device_get(state.params)
    value = SAID[step // 2 - 1]
    said = {patience.key(metric): value if metric.better == "higher" else -value}
    return validated(ready, state, means, validation, metric) | said

  monkeypatch.setattr(fitting, "_validated", chosen)
  return seen


def leaves(tree):
  return {name: np.asarray(leaf).tobytes() for name, leaf in named_leaves(tree).items()}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("most", CASES)
def test_the_best_state_is_kept_and_the_schedule_is_that_of_all_steps(tmp_path, said, most, capfd):
  last, kept = CASES[most]
  context = jobs.opened(tmp_path, **RUN, stages__alone__patience=most, keep=1, checkpoint_every=2)
  left = jobs.train(context)["alone"]
  assert max(said) == last and leaves(left.variables["params"]) == leaves(said[kept])
  assert [step for step, _ in stage.curves("alone", context)["loss"]] == [*range(2, last + 1, 2)]
  words = f"stopped at step {last} of 12" if last < 12 else "trained all 12 steps"
  assert f"stage 'alone': {words}; kept as of step {kept}, the best on the validation split" in capfd.readouterr().err
  # The states on the way are those of a stage without patience.
  if most == 1:
    stopped = {step: leaves(params) for step, params in said.items()}
    jobs.train(jobs.opened(tmp_path / "whole", **RUN))
    assert {step: leaves(said[step]) for step in stopped} == stopped


@pytest.mark.sampled(2)
@pytest.mark.parametrize("at", [3, 5, 6])
def test_a_stopped_stage_resumes_as_the_unbroken_one(tmp_path, said, at):
  """Also where it had ended, and was stopped before its model was written."""
  settings = {**RUN, "stages__alone__patience": 1}
  whole = jobs.train(jobs.opened(tmp_path / "whole", **settings))["alone"]
  with jobs.interrupted(at):
    jobs.train(jobs.opened(tmp_path / "broken", **settings))
  assert not (tmp_path / "broken" / "models" / "alone.safetensors").exists()
  again = jobs.train(jobs.opened(tmp_path / "broken", **settings))["alone"]
  assert leaves(again.variables) == leaves(whole.variables)
  lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "broken")]
  assert lines[0] == lines[1]


def test_a_stage_that_had_ended_trains_no_further_step(tmp_path, said, monkeypatch):
  settings = {**RUN, "stages__alone__patience": 1, "checkpoint_every": 2}
  with monkeypatch.context() as patch:
    patch.setattr(fitting, "_best", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      jobs.train(jobs.opened(tmp_path, **settings))
  assert (tmp_path / "checkpoints" / "alone" / "6").is_dir()
  said.clear()
  kept = jobs.train(jobs.opened(tmp_path, **settings))["alone"]
  assert not said
  whole = jobs.train(jobs.opened(tmp_path / "whole", **settings))["alone"]
  assert leaves(kept.variables) == leaves(whole.variables)


def test_the_report_says_where_it_ended(tmp_path, said):
  result = compress(jobs.experiment(**RUN, stages__alone__patience=1), tmp_path)
  assert result["rows"][0]["ended"] == {"last_step": 6, "kept_step": 4, "validation_accuracy": 0.6, "steps": 12}
  assert json.loads((tmp_path / "result.json").read_text())["rows"][0]["ended"] == result["rows"][0]["ended"]
  words = "stopped at step 6 of 12; kept as of step 4, the best on the validation split"
  assert f"<b>alone</b> {words}" in (tmp_path / "report.html").read_text()
  assert f"**alone** {words}" in (tmp_path / "report.md").read_text()
  assert leaves(trained.load(tmp_path / "models" / "alone.safetensors")[0].variables["params"]) == leaves(said[4])


def test_mistakes_are_named():
  with pytest.raises(UserError, match=r"'stages.alone.patience' is 2, and 'seeds_over' is 'vmap': seeds that train"):
    jobs.experiment(seeds=2, seeds_over="vmap", stages__alone__patience=2)
  with pytest.raises(UserError, match="'stages.alone.patience' is -1; expected a whole number, 0 or more"):
    jobs.experiment(stages__alone__patience=-1)


def test_patience_needs_validation_examples(tmp_path):
  data = {**jobs.EXPERIMENT["data"]["kwargs"], "validation": 0}
  with pytest.raises(UserError, match="'stages.alone.patience' is 1, but the data has no validation examples"):
    jobs.opened(tmp_path / "run", **RUN, data__kwargs=data, stages__alone__patience=1)
