"""Every kind of stage: prepared without a compilation, it leaves what was prepared, and is read again."""

import functools
import tempfile

import jax
import numpy as np
import pytest
import safetensors.numpy

from leanax.core.errors import UserError
from leanax.pipeline import job, stage, trained
from leanax.pipeline.config.references import KINDS
from tests.integration import jobs

COMPILES: list[str] = []
NORMED = {"name": "zoo.resnet:ResNet", "kwargs": {"blocks": (1,), "widths": (4,), "classes": 4}}
INT8 = {"quant": {"rules": (("*", "w8a8"),), "calibration_batches": 1}, "start": "alone"}
# kind: a stage "new" of it that follows "alone", a student with batch norms
CASES = {
  "mask": {"start": "alone", "sparsity": {"density": 0.5}},
  "post_training": INT8,
  "pretrained": {"model": "saved"},
  "train": {**jobs.STAGE, **INT8, "epochs": 1, "teacher": "alone", "objective": jobs.DISTIL},
}
# kind: a change of this stage that fits no model, and what is said of it
MISTAKES = {
  "mask": (
    {"sparsity": {"density": 0.5, "rules": (("Conv_9*", True),)}},
    r"'stages.new.sparsity': sparsity rule 'Conv_9\*' matches nothing",
  ),
  "post_training": (
    {"quant": {"rules": (("Conv_9*", "w8a8"),)}},
    r"stage 'new': quantization rule 'Conv_9\*' matches nothing",
  ),
  "pretrained": ({"model": "others"}, r"weights.safetensors has no array for 'Dense_1/bias', 'Dense_1/kernel'"),
  "train": ({"quant": {"rules": (("Conv_9*", "w8a8"),)}}, r"stage 'new': quantization rule 'Conv_9\*' matches nothing"),
}


def note(name, *_, **__):
  if name.endswith("backend_compile_duration"):
    COMPILES.append(name)


jax.monitoring.register_event_duration_secs_listener(note)


@functools.cache
def weights():
  """A file of the weights of one dense layer, for images of 6x6 and four classes."""
  path = f"{tempfile.mkdtemp()}/weights.safetensors"
  arrays = {"Dense_0/kernel": np.full((36, 4), 0.5, np.float32), "Dense_0/bias": np.arange(4, dtype=np.float32)}
  safetensors.numpy.save_file(arrays, path)
  return path


def changes(kind):
  saved = {"models__saved": {"name": "zoo.mlp:MLP", "kwargs": {"widths": (), "classes": 4}, "weights": weights()}}
  saved["models__others"] = {**saved["models__saved"], "kwargs": {"widths": (8,), "classes": 4}}
  return {
    **(saved if kind == "pretrained" else {}),
    "run": ("alone", "new"),
    "models__student": NORMED,
    "stages__alone__epochs": 1,
    "stages__new": {**CASES[kind], "kind": kind},
  }


def test_every_kind_has_a_case():
  assert sorted(CASES) == sorted(MISTAKES) == KINDS


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", KINDS)
def test_a_job_leaves_the_prepared_model_and_is_read_again(tmp_path, kind):
  context = jobs.opened(tmp_path, **changes(kind))
  done = jobs.train(context)
  prepared, left = context.jobs["new"].leaves, done["new"]
  assert prepared.recipe == left.recipe

  def shapes(trees):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), trees)

  assert shapes(prepared[1:]) == shapes(left[1:])
  written = job.model_file(tmp_path, "new").stat().st_mtime_ns
  again = stage.run_stage("new", context, {})
  plain = (trained.trees(one.variables)[0] for one in (left, again))
  jax.tree.map(lambda a, b: None if (a == b).all() else pytest.fail("other numbers"), *plain)
  assert job.model_file(tmp_path, "new").stat().st_mtime_ns == written


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_trains_and_no_model_compiles_in_preparation(tmp_path, kind):
  """Norms are folded on numbers, whose few operations compile; a model without them compiles nothing."""
  config = jobs.experiment(**{**changes(kind), "models__student": jobs.EXPERIMENT["models"]["student"]})
  COMPILES.clear()
  context = stage.opened(config, tmp_path / "run")
  assert not COMPILES and not (tmp_path / "run").exists()
  assert set(context.jobs) == {"alone", "new"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_that_cannot_run_is_refused_before_anything_runs(tmp_path, kind):
  change, sentence = MISTAKES[kind]
  with pytest.raises(UserError, match=sentence):
    jobs.opened(tmp_path / "run", **{**changes(kind), "stages__new": {**CASES[kind], "kind": kind, **change}})
  assert not (tmp_path / "run").exists()
