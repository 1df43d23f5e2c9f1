"""Micro-batches of a stage whose labels are masked are its batches, and a teacher that fails is named with its step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import engine
from leanax.core.errors import UserError
from leanax.engine.store import checkpoint
from leanax.pipeline import build, stage
from leanax.pipeline.teacher_outputs import called
from tests.integration import jobs

SGD = {"name": "sgd", "learning_rate": 0.1}


@pytest.mark.parametrize("parallel", [pytest.param("jit", marks=pytest.mark.slow), "pmap"])
def test_masked_micro_batches_are_the_batch(tmp_path, parallel):
  masked = {"hard_labels": {"mask": "labelled"}, "hinton": {"weight": 0.5, "mask": "unlabelled"}}
  given = {
    "stages__distilled__objective": masked,
    "stages__distilled__examples": {"labelled": 20},
    "parallel": parallel,
  }
  left, lines = [], []
  for accumulate in (1, 2):
    context = jobs.opened(
      tmp_path / str(accumulate),
      **given,
      stages__distilled__batch_size=32 // accumulate,
      stages__distilled__optimizer={**SGD, "accumulate": accumulate},
    )
    left.append(jobs.train(jobs.with_teacher(context))["distilled"].variables)
    lines.append(stage.curves("distilled", context))
  for actual, desired in zip(*map(jax.tree.leaves, left), strict=True):
    np.testing.assert_allclose(actual, desired, atol=2e-5)
  for name in ("loss", "hinton", "hard_labels", "train_accuracy"):
    np.testing.assert_allclose(lines[0][name][-1][1], lines[1][name][-1][1], rtol=1e-3, err_msg=name)


def test_steps_are_updates_and_batches_that_fill_none_are_dropped(tmp_path, monkeypatch):
  given = {"run": ("alone",), "stages__alone__batch_size": 8, "stages__alone__optimizer": {**SGD, "accumulate": 5}}
  context = jobs.opened(tmp_path, **given)
  seen, fit = [], engine.fit
  monkeypatch.setattr(engine, "fit", lambda *args, **kwargs: seen.append(kwargs["steps"]) or fit(*args, **kwargs))
  stage.run_stage("alone", context, {})
  (steps,), batches = seen, build.batches(context.config.stages["alone"], len(context.data.train.labels))
  assert steps == batches // 5 and batches % 5 and stage.curves("alone", context)["loss"][-1][0] == steps


def test_checkpoints_whose_steps_were_batches_are_refused(tmp_path, monkeypatch):
  given = {"run": ("alone",), "stages__alone__optimizer": {**SGD, "accumulate": 2}}
  opened = checkpoint.Checkpoints
  with monkeypatch.context() as patch:  # a checkpoint of before says nothing of the batches per step
    patch.setattr(
      checkpoint, "Checkpoints", lambda *args, **about: opened(*args, **about | {"config": {"stage": "alone"}})
    )
    stage.run_stage("alone", jobs.opened(tmp_path, **given), {})
  for _ in range(2):  # of a stage that is done, and of one that is not
    with pytest.raises(
      UserError, match="checkpoints of another config: 'batches per step' is set here only; choose an"
    ):
      stage.run_stage("alone", jobs.opened(tmp_path, **given), {})
    stage.model_file(tmp_path, "alone").unlink(missing_ok=True)


def test_a_teacher_that_is_not_finite_is_named(tmp_path):
  context = jobs.opened(tmp_path, stages__distilled__cache_teacher=False)
  teacher = jobs.train(jobs.opened(tmp_path / "teacher", run=("teacher",)))["teacher"]
  broken = jax.tree.map(lambda a: jnp.where(jnp.arange(a.size).reshape(a.shape) == 0, jnp.inf, a), teacher.variables)
  with pytest.raises(UserError, match="the outputs of the teacher of stage 'distilled', 'teacher', are not .* step 1;"):
    stage.run_stage("distilled", context, {"teacher": teacher._replace(variables=broken)})
  given = context.config.stages["distilled"]
  given = dataclasses.replace(given, peers=2)
  assert called("distilled", given) == "the peers of stage 'distilled'"
