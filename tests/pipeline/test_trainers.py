"""How a stage trains beyond a loss and an optimizer of every day: DOT."""

import numpy as np
import pytest

from core.errors import UserError
from pipeline import stage
from pipeline.compress import open_run
from tests.integration import jobs


def run_of(folder, **changes):
  return open_run(jobs.experiment(**{"run": ("teacher", "distilled"), **changes}), folder)


def train(context):
  done = {}
  for name in context.config.run:
    done[name] = stage.run_stage(name, context, done)
  return done


def kernel(done):
  return np.asarray(done["distilled"].variables["params"]["Dense_0"]["kernel"])


def test_dot_trains_a_stage_and_is_sgd_without_a_difference(tmp_path):
  def one(folder, **optimizer):
    given = {"learning_rate": 0.05, "accumulate": 2, "clip_norm": 1.0, "weight_decay": 1e-3, **optimizer}
    context = run_of(tmp_path / folder, stages__distilled__optimizer=given)
    return kernel(train(context)), stage.curves("distilled", context)

  dot, series = one("dot", name="dot")
  assert series["loss"][-1][1] < series["loss"][0][1]
  sgd, _ = one("sgd", name="sgd")
  same, _ = one("same", name="dot", delta=0.0)
  np.testing.assert_array_equal(same, sgd)
  assert np.any(dot != sgd)


def test_dot_needs_losses_of_both_kinds(tmp_path):
  for objective in ({"hard_labels": {}}, {"hinton": {}}):
    with pytest.raises(UserError, match="'stages.distilled.optimizer.name' is 'dot'.*losses of both kinds"):
      run_of(tmp_path, stages__distilled__optimizer={"name": "dot"}, stages__distilled__objective=objective)
  with pytest.raises(UserError, match="config group 'stages.distilled.optimizer': dot: momentum is 0.9 and delta 0.2"):
    train(run_of(tmp_path, stages__distilled__optimizer={"name": "dot", "delta": 0.2}))
