"""The main job made tiny: four classes of 6x6 images, three short epochs a stage, for the tests of this directory."""

import contextlib
import copy
import dataclasses
import os
import pprint
import subprocess
import sys
from pathlib import Path

import ml_collections

from leanax.pipeline.config import loading

ROOT = Path(__file__).resolve().parents[2]
DISTIL = {"hard_labels": {"weight": 0.3}, "hinton": {"weight": 0.7, "temperature": 4.0}}
STAGE = {"epochs": 3, "batch_size": 32, "optimizer": {"learning_rate": 0.05}}
CUBIC = {"name": "cubic", "start": 0.2, "end": 0.7, "every": 2}
STAGES = ("teacher", "alone", "distilled", "pruned", "int8")
STEPS = 12  # of each stage

EXPERIMENT = {
  "name": "tiny",
  "data": {
    "name": "synthetic",
    "kwargs": {"shape": (6, 6, 1), "classes": 4, "train": 128, "validation": 32, "test": 64, "noise": 40, "shift": 0},
  },
  "models": {
    "teacher": {"name": "zoo.mlp:MLP", "kwargs": {"widths": (32, 16), "classes": 4}},
    "student": {"name": "zoo.mlp:MLP", "kwargs": {"widths": (8,), "classes": 4}},
  },
  "stages": {
    "teacher": {**STAGE, "model": "teacher"},
    "alone": STAGE,
    "distilled": {**STAGE, "teacher": "teacher", "objective": DISTIL},
    "pruned": {
      **STAGE,
      "start": "distilled",
      "teacher": "teacher",
      "objective": DISTIL,
      "sparsity": {"name": "magnitude", "density": 0.4, "schedule": CUBIC},
    },
    "int8": {
      **STAGE,
      "start": "pruned",
      "teacher": "teacher",
      "objective": DISTIL,
      "sparsity": {"name": "hold"},
      "quant": {"rules": (("*", "w8a8 learned"),), "calibration_batches": 2},
    },
  },
  "run": STAGES,
  "evaluations": 6,  # so a line of metrics.jsonl every 2 steps
  "checkpoint_every": 4,
  "latency_runs": 5,
  "layer_seconds": 0.1,
}


def values(**changes):
  """The experiment as plain values, changed: `values(models__student__name="...")`; None takes a key away."""
  tree = copy.deepcopy(EXPERIMENT)
  for path, value in changes.items():
    *groups, last = path.split("__")
    place = tree
    for group in groups:
      place[group] = place = dict(place.get(group) or {})
    if value is None:
      del place[last]
    else:
      place[last] = value
  return tree


def experiment(**changes):
  """The experiment as `scripts.compress` gets it."""
  return loading.resolve(ml_collections.ConfigDict(values(**changes)))


def opened(folder, **changes):
  """A run of the experiment, cut to a teacher and its student unless `run` says otherwise; nothing is trained."""
  from leanax.pipeline.compress import open_run

  return open_run(experiment(**{"run": ("teacher", "distilled"), **changes}), folder)


def train(context):
  """The models of a run's stages, by name."""
  from leanax.pipeline import stage

  done = {}
  for name in context.config.run:
    done[name] = stage.run_stage(name, context, done)
  return done


_TEACHERS: dict[str, bytes] = {}


def with_teacher(context):
  """A run whose stage "teacher" is done: with the file that the same settings gave before in this process, if any."""
  from leanax.pipeline import job, stage

  config = context.config
  own = config.stages["teacher"]
  models = {own.model: config.models[own.model]}
  settings = repr(dataclasses.replace(config, run=(), stages={"teacher": own}, models=models))
  file = job.model_file(context.folder, "teacher")
  if settings in _TEACHERS:
    file.parent.mkdir(parents=True)
    file.write_bytes(_TEACHERS[settings])
  else:
    stage.run_stage("teacher", context, {})
    _TEACHERS[settings] = file.read_bytes()
  return context


class Stopped(Exception):
  """The exception by which tests stop a run."""


@contextlib.contextmanager
def interrupted(at, name=None):
  """Stops the training of a stage, of any one without a name, after `at` steps, before what is written of that step."""
  import pytest

  from leanax import engine
  from leanax.pipeline import fitting

  inner, outer, running = engine.fit, fitting.fit, []

  def stop(step, state, metrics):
    raise Stopped

  def fit(*arguments, hooks, **keywords):
    return inner(*arguments, hooks=[*hooks, engine.Hook(at, stop)] if name in (None, *running) else hooks, **keywords)

  def named(stage, *arguments):
    running[:] = [stage]
    return outer(stage, *arguments)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(fitting, "fit", named)
    patch.setattr(engine, "fit", fit)
    with pytest.raises(Stopped):
      yield


def write(path, **changes):
  """The experiment as a config file."""
  text = pprint.pformat(values(**changes), sort_dicts=False)
  path.write_text(f"from ml_collections import ConfigDict\n\n\ndef get_config():\n  return ConfigDict({text})\n")
  return path


def program(name, *arguments, python=(), **environment):
  """Runs `python -m scripts.NAME` as a user does."""
  return subprocess.run(
    [sys.executable, *python, "-m", f"scripts.{name}", *map(str, arguments)],
    cwd=ROOT,
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )
