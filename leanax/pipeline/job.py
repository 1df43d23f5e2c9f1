"""A job, which is a stage prepared on shapes, and the context that all jobs of a run share."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from leanax.engine.data import Dataset
from leanax.engine.store import metrics
from leanax.pipeline.config.experiment import Experiment
from leanax.pipeline.trained import Trained


class Job(NamedTuple):
  """A prepared stage.

  Attributes:
    run: `run(contexts, before, over) -> [Trained, ...]`, one per run: `contexts` and `before` (what earlier stages
      left) of runs that differ in their seeds only, `over` as of `run_stages`.
    leaves: the recipe of the model that it leaves, and its trees as shapes.
    steps: training steps.
  """

  run: Callable[..., list[Trained]]
  leaves: Trained
  steps: int


class Context(NamedTuple):
  """The context that all stages of a run share.

  Attributes:
    config: the experiment.
    folder: the run's directory.
    data: its data.
    shared: the directory of what runs of several seeds may share.
    jobs: the prepared stages by name.
  """

  config: Experiment
  folder: Path
  data: Dataset
  shared: Path
  jobs: Mapping[str, Job] = {}


def model_file(folder: Path, name: str) -> Path:
  """Returns the file in which a stage leaves its model."""
  return folder / "models" / f"{name}.safetensors"


def first_step(name: str, context: Context) -> int:
  """Returns the steps of the stages before this one: where it starts in the run's metrics.jsonl."""
  run = context.config.run
  return sum(context.jobs[earlier].steps for earlier in run[: run.index(name)])


def log_every(config: Experiment, steps: int) -> int:
  """Returns after how many steps a stage is evaluated, and a line of metrics.jsonl is written."""
  return max(steps // config.evaluations, 1)


def lines(name: str, context: Context) -> metrics.Lines:
  """Returns a stage's lines of metrics.jsonl, with its own steps and names; none of one without steps."""
  steps, path = context.jobs[name].steps, context.folder / metrics.NAME
  return metrics.own(path, name, start=log_every(context.config, steps)) if steps else []


def curves(name: str, context: Context) -> dict[str, list[tuple[int, float]]]:
  """Returns a stage's series from metrics.jsonl, by name: (step of the stage, value); none of one without steps."""
  found: dict[str, list[tuple[int, float]]] = {}
  for line in lines(name, context):
    for key, value in line.items():
      if key != "step":
        found.setdefault(key, []).append((line["step"], float(value) if isinstance(value, str) else value))
  return found
