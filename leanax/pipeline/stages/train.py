"""A stage that trains a fresh, earlier or cut-out model on an objective, with or without teachers, masks and grids."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from leanax.core import ranges
from leanax.core.errors import UserError
from leanax.engine import data as datasets
from leanax.engine.data import Dataset, Split, batches
from leanax.engine.data.splits import class_counts
from leanax.engine.train import parallel
from leanax.pipeline import (
  build,
  calibrate,
  fitting,
  learning,
  optimizers,
  start,
  teacher_checks,
  teacher_outputs,
  together,
)
from leanax.pipeline import trained as models
from leanax.pipeline.config.experiment import Experiment, described, model_code
from leanax.pipeline.fitting import Ready
from leanax.pipeline.job import Context, Job, model_file
from leanax.pipeline.learning import Learning
from leanax.pipeline.recipe import ALL
from leanax.pipeline.trained import Trained


def check(name: str, config: Experiment) -> None:
  """Refuses what a stage's config alone shows: methods that are not there, keys that do not go together."""
  stage = config.stages[name]
  objective = build.objective(name, stage.objective, counts=())
  teacher_checks.check_config(name, config, objective)
  together.check(name, config, objective)
  optimizers.check_sparsity(name, stage)
  optimizers.check_reparam(name, stage)
  build.policy(stage.quant)


def prepare(name: str, config: Experiment, data: Dataset, before: Mapping[str, Trained]) -> Job:
  """Prepares a stage that trains.

  Args:
    name: the stage's.
    config: the experiment.
    data: its data.
    before: what earlier stages leave; of their trees shapes are enough.

  Raises:
    UserError: what would not run.
  """
  made, leaves, steps = plan(name, config, data, before)

  def run(contexts: Sequence[Context], done: Sequence[Mapping[str, Trained]], over: str) -> list[Trained]:
    each = [ready(name, context, earlier, made, steps) for context, earlier in zip(contexts, done, strict=True)]
    states = fitting.fit(name, contexts, each, over)
    return [one.learning.kept(state, one.teacher) for one, state in zip(each, states, strict=True)]

  return Job(run, leaves, steps)


def plan(name: str, config: Experiment, data: Dataset, before: Mapping[str, Trained]) -> tuple[Learning, Trained, int]:
  """Returns a stage's functions of training, what it leaves, and its steps; arguments as of `prepare`."""
  stage = config.stages[name]
  # The batches: they fit the data and the devices.
  split = build.examples(config, stage, data.train)
  spec = build.inputs(config, stage, split)
  batches.check(dataclasses.replace(spec, per_view=()), build.arrays(split))
  if (count := build.batches(stage, len(split.ids))) > ranges.WHOLE:
    raise UserError(f"'epochs' is {stage.epochs}, which makes {count} batches; expected at most {ranges.WHOLE}")
  if config.parallel != "jit":
    parallel.share(jax.ShapeDtypeStruct((stage.batch_size,), jnp.int32), len(jax.local_devices()))
  if stage.patience and not len(data.validation.ids):
    raise UserError(f"config key 'stages.{name}.patience' is {stage.patience}, but the data has no validation examples")
  learning.check_masks(build.objective(name, stage.objective, counts=()), split)
  # The model before the first step, with its grids, and its teachers.
  model = start.model_of(stage, config, data, before, jax.eval_shape)
  model = calibrate.calibrated(stage.quant, model, calibrate.one_batch(model.recipe), spec, jax.eval_shape)
  teachers = _teachers(name, config, data, before, jax.eval_shape)
  # The objective, the optimizer and the step; and the model that the last step leaves.
  steps = build.steps(stage, len(split.ids))
  made = _learning(name, config, model, teachers, split)
  return made, learning.leaves(made, model, teachers), steps


def _learning(name: str, config: Experiment, model: Trained, teachers: Sequence[Trained], split: Split) -> Learning:
  """Returns the stage's functions of training on `split`, once its teachers are compared with its student."""
  stage = config.stages[name]
  batches = build.batches(stage, len(split.ids))
  updates = max(batches // stage.optimizer.accumulate, 1)
  output = "" if model.recipe.output == ALL else model.recipe.output
  objective = build.objective(name, stage.objective, updates, output, class_counts(split))
  teacher_checks.check(stage, [one.recipe for one in teachers], model.recipe, objective)
  spec = build.inputs(config, stage, split)
  if teachers and not teacher_outputs.further(objective) and teacher_outputs.has_rows(teachers[0]):
    teacher_checks.check_store(name, stage, len(stage.teacher_classes) or models.outputs_of(teachers[0]).shape[-1])
  beside = described(config, stage)
  labels = build.arrays(split)["label"]
  return learning.make(name, stage, objective, model, teachers, spec, batches, labels, beside)


def _teachers(
  name: str, config: Experiment, data: Dataset, before: Mapping[str, Trained], execute: start.Execute = start.now
) -> list[Trained]:
  """Returns the models that a stage learns from; of a teacher that it trains, the model before the first step."""
  stage = config.stages[name]
  beside = described(config, stage)
  if beside is not None:
    return [start.model_of(beside, config, data, before, execute)]
  return teacher_outputs.sources(stage, before, model_code(config))


def ready(name: str, context: Context, before: Mapping[str, Trained], made: Learning, steps: int) -> Ready:
  """Returns a run's stage before its first step: the same as was prepared, now on numbers."""
  config, data = context.config, context.data
  stage = config.stages[name]
  split = build.examples(config, stage, data.train)
  spec, arrays = build.inputs(config, stage, split), datasets.device_arrays(split)
  # The models of all peers, calibrated on this run's images.
  each = []
  for peer in range(stage.peers):
    model = start.model_of(stage, config, data, before, peer=peer)
    images = calibrate.batches(arrays, spec, stage.quant.calibration_batches)
    each.append(calibrate.calibrated(stage.quant, model, images, spec))
  # Teachers: live, or their logits stored beside the examples; or trained in the same steps.
  teachers = _teachers(name, config, data, before)
  trained = [] if described(config, stage) else teachers
  if trained:
    others, metric = _without_teacher(context, each[0]), build.metrics(config)[0]
    teacher_checks.warn_of_a_worse_teacher(name, stage, trained, others, data.validation, metric)
  outputs = teacher_outputs.make(stage, trained, arrays, spec, made.objective, context.shared / "teacher_logits")
  # Norms of numbers that are the same at every position may be folded where distinct ones stay: prepared once more.
  if (each[0].recipe, *(one.recipe for one in teachers)) != (made.recipe, *made.teachers):
    made = _learning(name, config, each[0], teachers, split)
  teacher = teachers[0].variables if teachers else None
  return Ready(made, made.start(each, config.seed, teacher), arrays, outputs, teacher, steps)


def _without_teacher(context: Context, model: Trained) -> dict[str, Trained]:
  """Returns the models of the finished stages without a teacher that are of the same network as `model`."""
  stages, code = context.config.stages, model_code(context.config)
  files = {name: model_file(context.folder, name) for name in context.config.run if not stages[name].teacher}
  found = {name: models.load(path, code)[0] for name, path in files.items() if path.is_file()}
  return {name: one for name, one in found.items() if one.recipe[:2] == model.recipe[:2]}
