"""A stage that trains nothing: an earlier stage's model is rounded to nearest, on grids from calibration batches."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax

import quant
from leanax.core.errors import UserError
from leanax.engine import data as datasets
from leanax.engine.data import Dataset, batches
from leanax.pipeline import build, calibrate, start, untrained
from leanax.pipeline.config.experiment import Experiment, Stage
from leanax.pipeline.job import Context, Job
from leanax.pipeline.trained import Trained

READ = ("kind", "model", "start", "examples", "batch_size", "quant")  # the keys of a stage that it reads


def check(name: str, config: Experiment) -> None:
  """Refuses what a stage's config alone shows: keys that only training reads, nothing to start from, no rules."""
  untrained.check(name, config, READ)
  stage = config.stages[name]
  if not stage.quant.rules:
    raise UserError(f"config key 'stages.{name}.quant.rules' is empty; expected rules such as (('*', 'w8a8'),)")
  build.policy(stage.quant)
  for pattern, setting in stage.quant.rules:
    if any(spec.estimator != "ste" for spec in quant.parse(setting).specs):
      raise UserError(
        f"config key 'stages.{name}.quant.rules' has {setting!r} for {pattern!r}, an estimator of training, but a "
        "stage of kind 'post_training' trains nothing; expected such as 'w8a8'"
      )


def prepare(name: str, config: Experiment, data: Dataset, before: Mapping[str, Trained]) -> Job:
  """Prepares a stage that folds batch norms, calibrates, and leaves the rounded model.

  Args:
    name: the stage's.
    config: the experiment.
    data: its data; calibration batches are of its training split, without augmentation.
    before: what earlier stages leave; of their trees shapes are enough.

  Raises:
    UserError: calibration batches that the data has not, or rules that do not fit the model.
  """
  stage = config.stages[name]
  # Calibration batches: they fit the data.
  split = build.examples(config, stage, data.train)
  spec = build.inputs(config, stage, split)
  batches.check(dataclasses.replace(spec, per_view=()), build.arrays(split))
  # The model, with its grids, on shapes.
  model = start.model_of(stage, config, data, before, jax.eval_shape)
  leaves = calibrate.calibrated(stage.quant, model, calibrate.one_batch(model.recipe), spec, jax.eval_shape)

  def run(contexts: Sequence[Context], done: Sequence[Mapping[str, Trained]], over: str) -> list[Trained]:
    del over  # nothing is trained
    return [_rounded(stage, context, earlier) for context, earlier in zip(contexts, done, strict=True)]

  return Job(run, leaves, steps=0)


def _rounded(stage: Stage, context: Context, before: Mapping[str, Trained]) -> Trained:
  """Returns the model on the grids of its calibration batches."""
  config, data = context.config, context.data
  model, split = start.model_of(stage, config, data, before), build.examples(config, stage, data.train)
  spec, arrays = build.inputs(config, stage, split), datasets.device_arrays(split)
  images = calibrate.batches(arrays, spec, stage.quant.calibration_batches)
  return calibrate.calibrated(stage.quant, model, images, spec)
