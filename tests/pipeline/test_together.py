"""A stage that trains its teacher in its own steps: as that stage alone, resumed, over seeds, and what is refused."""

import chex
import jax
import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.engine.store import metrics
from leanax.pipeline import fitting, stage
from leanax.pipeline.compress import compress
from leanax.pipeline.seeds import train_seeds
from leanax.pipeline.stages import train
from tests.integration import jobs

TOGETHER = {"stages__distilled__teacher_mode": "together", "run": ("distilled",)}


def test_it_needs_no_trained_teacher_and_leaves_the_student(tmp_path):
  result = compress(jobs.experiment(**TOGETHER), tmp_path)
  assert [row["name"] for row in result["rows"]] == ["distilled"] and result["rows"][0]["accuracy"] > 0.5
  context = jobs.opened(tmp_path, **TOGETHER)
  own = [value for _, value in stage.curves("distilled", context)["teacher/loss"]]
  assert own[-1] < own[0]
  assert {"hinton", "hinton/grad_norm"} <= set(stage.curves("distilled", context))


def test_the_teacher_trains_as_in_its_own_stage(tmp_path):
  """It sees the same batches from the same beginning, so that its weights are those of the stage on its own."""
  alone = jobs.train(jobs.opened(tmp_path / "alone", run=("teacher",)))["teacher"]
  context = jobs.opened(tmp_path / "together", **TOGETHER)
  made, _, steps = train.plan("distilled", context.config, context.data, {})
  ready = train.ready("distilled", context, {}, made, steps)
  state = fitting.fit("distilled", [context], [ready], "")[0]
  chex.assert_trees_all_close(
    jax.device_get(state.teacher.params), jax.device_get(alone.variables["params"]), rtol=1e-4, atol=1e-6
  )


@pytest.mark.slow
def test_a_stopped_stage_resumes_as_if_uninterrupted(tmp_path, monkeypatch):
  whole = jobs.train(jobs.opened(tmp_path / "whole", **TOGETHER))["distilled"]
  stopped = jobs.opened(tmp_path / "stopped", **TOGETHER)
  write = metrics.Writer.write

  def stop(self, step, values):
    if step > 8:
      raise KeyboardInterrupt
    write(self, step, values)

  with monkeypatch.context() as patch:
    patch.setattr(metrics.Writer, "write", stop)
    with pytest.raises(KeyboardInterrupt):
      jobs.train(stopped)
  assert list((stopped.folder / "checkpoints" / "distilled").glob("[0-9]*"))
  chex.assert_trees_all_equal(jobs.train(stopped)["distilled"].variables, whole.variables)


def test_a_teacher_has_frozen_leaves_of_its_own(tmp_path):
  context = jobs.opened(tmp_path, **TOGETHER, stages__distilled__epochs=1, stages__teacher__freeze=("Dense_0/*",))
  made, _, steps = train.plan("distilled", context.config, context.data, {})
  ready = train.ready("distilled", context, {}, made, steps)
  params = fitting.fit("distilled", [context], [ready], "")[0].teacher.params
  for layer, leaves in params.items():  # biases start at zero
    assert (not np.asarray(leaves["bias"]).any()) == (layer == "Dense_0")


@pytest.mark.slow
def test_several_seeds_have_a_teacher_each(tmp_path):
  each = [
    done["distilled"].variables
    for over in ("loop", "vmap")
    for _, done in train_seeds(jobs.experiment(**TOGETHER, seeds=2, seeds_over=over), tmp_path / over)
  ]
  for one, other in zip(each[:2], each[2:], strict=True):
    chex.assert_trees_all_close(one, other, rtol=1e-3, atol=1e-4)
  assert not np.allclose(each[0]["params"]["Dense_0"]["kernel"], each[1]["params"]["Dense_0"]["kernel"])


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"stages__distilled__teacher": "tacher"}, "'stages.distilled.teacher' is 'tacher'; expected an entry of 'stages'"),
    (
      {"stages__distilled__teacher": "itself", "stages__distilled__optimizer": {"ema": 0.9}},
      "is 'itself'; expected an entry of 'stages' with the teacher's model",
    ),
    ({"stages__distilled__teacher": "teacher, alone"}, "is 'teacher, alone'; expected an entry of 'stages'"),
    ({"stages__distilled__teacher": "a.safetensors"}, "is 'a.safetensors'; expected an entry of 'stages'"),
    ({"stages__distilled__teacher": ""}, "'stages.distilled.teacher_mode' is 'together'; it has an effect only where"),
    ({"stages__distilled__teacher_classes": (0, 1, 2, 3)}, "'stages.distilled.teacher_classes' is"),
    ({"stages__teacher__model": "studnt"}, "did you mean 'student'"),
    ({"stages__teacher__optimizer": {"ema": 0.9}}, "'stages.teacher.optimizer.ema' is 0.9; expected 0.0 of a teacher"),
    ({"stages__teacher__patience": 1}, "'stages.teacher.patience' is 1; expected 0 of a teacher"),
    ({"stages__teacher__kind": "post_training"}, "'stages.teacher.kind' is 'post_training'; expected 'train'"),
    ({"stages__teacher__optimizer": {"accumulate": 2}}, "'stages.teacher.optimizer.accumulate' is 2; expected 1"),
    ({"stages__teacher__quant": {"rules": (("*", "w8a8"),)}}, "'stages.teacher.quant.rules' is"),
    ({"stages__distilled__teacher": "pruned"}, "'distilled'; expected none"),
    ({"stages__teacher__objective": jobs.DISTIL}, "the term 'hinton' of its teacher reads more than logits and labels"),
    (
      {"stages__distilled__objective": {"simkd": {"student": "Dense_0/kernel:out", "teacher": "Dense_1/kernel:out"}}},
      "the loss of term 'simkd' keeps its teacher's classifier",
    ),
    (
      {
        "stages__distilled__objective": {
          "srrl": {"student": "Dense_0/kernel:out", "teacher": "Dense_1/kernel:out", "classifier": "Dense_2"}
        }
      },
      "the loss 'srrl' copies 'Dense_2' of the teacher's parameters",
    ),
    (
      {"stages__distilled__objective": {"sp": {"student": "Dense_0/kernel:out", "teacher": "Dense_7/kernel:out"}}},
      "the objective's taps of the teacher",
    ),
  ],
)
def test_mistakes_are_refused_before_training(tmp_path, changes, match):
  with pytest.raises(UserError, match=match):
    stage.opened(jobs.experiment(**{**TOGETHER, **changes}), tmp_path)


def test_a_loss_on_activations_reads_it(tmp_path):
  objective = {"hard_labels": {}, "fitnet": {"student": "Dense_0/kernel:out", "teacher": "Dense_1/kernel:out"}}
  jobs.train(context := jobs.opened(tmp_path, **TOGETHER, stages__distilled__objective=objective))
  assert "fitnet" in stage.curves("distilled", context)


def test_micro_batches_of_both_are_the_batch(tmp_path):
  """An update of two micro-batches is one of their whole, of the student and of its teacher."""
  found = []
  for accumulate in (1, 2):
    optimizer = {"name": "sgd", "learning_rate": 0.1, "accumulate": accumulate}
    given = {f"stages__{name}__optimizer": optimizer for name in ("teacher", "distilled")}
    given |= {"stages__distilled__batch_size": 32 // accumulate, "stages__distilled__epochs": 1}
    context = jobs.opened(tmp_path / str(accumulate), **TOGETHER, **given)
    made, _, steps = train.plan("distilled", context.config, context.data, {})
    ready = train.ready("distilled", context, {}, made, steps)
    (state,) = fitting.fit("distilled", [context], [ready], "")
    found.append(jax.device_get((state.params, state.teacher.params)))
  chex.assert_trees_all_close(*found, atol=2e-5)
