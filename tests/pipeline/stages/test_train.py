"""Stages on a model whose norm is folded where its numbers are the same in all rows, and stays where they are not."""

import jax
import pytest

from leanax.pipeline import stage
from leanax.pipeline.stages import train
from tests.integration import jobs

INT8 = {"quant": {"rules": (("*", "w8a8"),), "calibration_batches": 1}, "start": "alone"}
ROWS = {"models__student": {"name": "tests.pipeline.nets:Rows", "kwargs": {}}}


def kinds(recipe):
  return [one["edit"] for one in recipe.edits]


def test_a_norm_that_stays_is_trained_with_its_statistics(tmp_path):
  given = {"run": ("alone", "int8"), "stages__alone__epochs": 1, "stages__int8": {**jobs.STAGE, **INT8, "epochs": 1}}
  context = jobs.opened(tmp_path, **ROWS, **given)
  done = jobs.train(context)
  left, before = done["int8"], done["alone"]
  assert kinds(context.jobs["int8"].leaves.recipe) == kinds(left.recipe) == ["quantize"]
  stats = [one.variables["batch_stats"]["BatchNorm_0"]["mean"] for one in (before, left)]
  assert stats[0].shape == (6, 4) and (stats[0] != stats[1]).any()


@pytest.mark.slow
def test_a_stage_whose_teacher_is_folded_otherwise_is_prepared_again(tmp_path):
  """A teacher that was never trained has the same numbers in all rows."""
  stages = {
    "alone": {**jobs.STAGE, "epochs": 0},
    "ptq": {**INT8, "kind": "post_training"},
    "last": {**jobs.STAGE, "epochs": 1, "teacher": "ptq", "objective": jobs.DISTIL},
  }
  context = jobs.opened(tmp_path, **ROWS, stages=stages, run=("alone", "ptq", "last"))
  done = {}
  for name in ("alone", "ptq"):
    done[name] = stage.run_stage(name, context, done)
  made, leaves, steps = train.plan("last", context.config, context.data, {n: j.leaves for n, j in context.jobs.items()})
  ready = train.ready("last", context, done, made, steps)
  assert [kinds(recipe) for one in (made, ready.learning) for recipe in one.teachers] == [
    ["quantize"],
    ["fold_batch_norm", "quantize"],
  ]
  left = stage.run_stage("last", context, done)
  assert jax.tree.structure(left.variables) == jax.tree.structure(leaves.variables)
