"""The stages of an experiment: all prepared before the first one runs, then run, resumable at any step."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import jax

from leanax.core.errors import UserError, unknown
from leanax.engine.data import Dataset
from leanax.engine.store import metrics, weight_files
from leanax.pipeline import build, exporting, fitting, job, judging, start
from leanax.pipeline import trained as models
from leanax.pipeline.config import references
from leanax.pipeline.config.experiment import Experiment, described, model_code, needs, starts_from_file
from leanax.pipeline.job import Context, Job, model_file
from leanax.pipeline.trained import Trained

curves = job.curves


def check(config: Experiment) -> None:
  """Refuses what the config alone shows, of its keys, its models and all of its stages; no data is read.

  Raises:
    UserError: names the key, or a file of weights that is not there.
  """
  references.check(config)
  exporting.check_keys(config)
  build.metrics(config)
  for name, entry in config.models.items():
    build.check_model_name(name, entry)
  for name in config.run:
    kind_of(config.stages[name].kind).check(name, config)
    _check_weights(name, config)


def _check_weights(name: str, config: Experiment) -> None:
  """Refuses a stage whose files of weights are not there, or of a kind that is not read; their content is not read."""
  stage = config.stages[name]
  for path in (config.models[stage.model].weights, stage.start if starts_from_file(stage) else ""):
    try:
      if path:
        weight_files.reader(path)
    except UserError as error:
      raise UserError(f"stage {name!r}: {error}") from error


def prepare(config: Experiment, data: Dataset) -> dict[str, Job]:
  """Prepares all stages on shapes, in order: each on the models that the earlier ones will leave. Nothing is compiled.

  Raises:
    UserError: whatever would not run, in one sentence that names the stage or its key.
  """
  # Models first: each is traced once, also those of teachers that are trained beside their students.
  stages = [config.stages[name] for name in config.run]
  described_teachers = [entry for entry in (described(config, stage) for stage in stages) if entry is not None]
  for name in dict.fromkeys(stage.model for stage in (*stages, *described_teachers)):
    judging.check(build.metrics(config), start.check_model(name, config, data), data)
  # Then the stages in order, each on the shapes that the earlier ones leave.
  jobs: dict[str, Job] = {}
  for name in config.run:
    before = {earlier: job.leaves for earlier, job in jobs.items()}
    try:
      jobs[name] = kind_of(config.stages[name].kind).prepare(name, config, data, before)
    except UserError as error:
      named = f"stages.{name}." in str(error) or str(error).startswith(f"stage {name!r}")
      raise (error if named else UserError(f"stage {name!r}: {error}")) from error
  return jobs


def kind_of(kind: str) -> ModuleType:
  """Returns a kind of stages: the file of its name (`leanax.pipeline.stages`)."""
  return importlib.import_module(f"leanax.pipeline.stages.{kind}")


def opened(config: Experiment, folder: Path, export: bool = False) -> Context:
  """Returns the context of a run, its data loaded and all of its stages checked and prepared.

  With `export` that of their files is prepared too, which refuses what cannot be exported.
  """
  check(config)
  data = build.dataset(config)
  jobs = prepare(config, data)
  if export:
    exporting.check(config, {name: job.leaves for name, job in jobs.items()})
  return Context(config, folder, data, folder, jobs)


def run_stage(name: str, context: Context, done: Mapping[str, Trained]) -> Trained:
  """Runs a stage, resumes it where it stopped, or reads the model that it saved.

  Args:
    name: a key of the experiment's stages.
    context: the run.
    done: what earlier stages left.
  """
  return run_stages(name, [context], [done])[0]


def run_stages(
  name: str, contexts: Sequence[Context], done: Sequence[Mapping[str, Trained]], over: str = ""
) -> list[Trained]:
  """Does the same for several runs together that differ only in their seeds.

  Args:
    name: a key of the experiments' stages.
    contexts: the runs.
    done: what earlier stages left, per run.
    over: "vmap" or "map" (`engine.train.seeds`) where there are several.
  """
  # Finished: the models are read; nothing is trained again.
  paths = [model_file(context.folder, name) for context in contexts]
  if all(path.is_file() for path in paths):
    fitting.refuse_old_curves(name, contexts[0], over)
    return [_finished(name, context, path) for context, path in zip(contexts, paths, strict=True)]
  # New, or stopped: the prepared job runs, from its last checkpoint on. The model file marks the stage as finished.
  found = contexts[0].jobs[name].run(contexts, done, over)
  for context, path, trained in zip(contexts, paths, found, strict=True):
    lines = job.lines(name, context)
    models.save(path, jax.device_get(trained), stage=name, lines=metrics.as_text(lines))
    fitting.place_curves(name, context, lines)
  return found


def _finished(name: str, context: Context, path: Path) -> Trained:
  """Returns the model of a finished stage, and makes its curves what they were."""
  trained, kept = models.load(path, model_code(context.config))
  if kept.get("stage", name) != name:
    raise UserError(f"{path} holds the model of stage {kept['stage']!r}; expected that of {name!r}; was it renamed?")
  text = kept.get("lines")  # older files do not have them
  fitting.place_curves(name, context, None if text is None else metrics.from_text(text, path))
  return trained


def run_with_needs(name: str, context: Context, done: dict[str, Trained]) -> Trained:
  """Runs a stage after those that it starts from or learns from; their models are added to `done`.

  Raises:
    UserError: the experiment has no such stage.
  """
  if name not in context.config.run:
    raise unknown("stage", name, context.config.run)
  stage = context.config.stages[name]
  for need in needs(stage):
    if need not in done:
      run_with_needs(need, context, done)
  done[name] = run_stage(name, context, done)
  return done[name]
