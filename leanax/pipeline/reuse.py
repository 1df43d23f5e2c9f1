"""A run's directory under a changed config: which of its stages stand, and what is removed before others are made.

config.json is written after everything that is not of its config is gone, so that whatever a directory holds at any
moment is of the config in it.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leanax.core import files
from leanax.pipeline import run_times
from leanax.pipeline.config.experiment import Experiment, described, needs
from leanax.pipeline.job import model_file

# Keys that may change while stages stand: those of stages, and those that change no model. Others, such as the seed
# and the data, are of every stage: a directory of other ones is refused, so that no slip discards a whole run.
OF_STAGES = ("models", "stages")
OF_NONE = ("run", "checkpoint_every", "keep", "latency_runs")
PREVIOUS = "previous"  # the folder of the models that stages left before their settings changed
REPORTS = ("result.json", "report.html", "report.md")


def settings(name: str, config: Experiment, plain: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
  """Returns everything that a stage is trained with but earlier stages, as the part of the config that holds it.

  Args:
    name: the stage's.
    config: the experiment.
    plain: from a group of it to JSON data.
  """
  stage = config.stages[name]
  stages = {name: stage} | ({stage.teacher: beside} if (beside := described(config, stage)) else {})
  models = {one.model: config.models[one.model] for one in stages.values()}
  return plain({"models": models, "stages": stages})


def identity(given: dict[str, Any]) -> dict[str, Any]:
  """Returns the values of a config by which a directory is known: another one is refused in it."""
  return {key: value for key, value in given.items() if key not in (*OF_STAGES, *OF_NONE)}


def changed(old: Experiment, new: Experiment, plain: Callable[[Any], dict[str, Any]]) -> dict[str, str]:
  """Returns the stages whose models are not those of the new config, each with the reason; arguments as above."""
  found: dict[str, str] = {}

  def why(name: str) -> str:
    if name not in found:
      found[name] = ""  # of stages that refer to each other, which never run
      if name not in new.stages:
        found[name] = "it is no stage any more"
      else:
        found[name] = files.difference(settings(name, old, plain), settings(name, new, plain))
      if not found[name]:
        first = next((need for need in needs(new.stages[name]) if need in old.stages and why(need)), None)
        found[name] = f"it needs stage {first!r}" if first else ""
    return found[name]

  return {name: why(name) for name in _in_order(old, new) if why(name)}


def keep(folder: Path, old: Experiment, new: Experiment, plain: Callable[[Any], dict[str, Any]]) -> None:
  """Removes from a run's directory what is not of its new config, and says of each stage whether it is kept.

  Args:
    folder: the directory.
    old: the experiment that it holds.
    new: the one that it is to hold.
    plain: as of `settings`.
  """
  gone = changed(old, new, plain)
  there = [name for name in _in_order(old, new) if any(path.exists() for path in _paths(folder, name))]
  for name in there if gone.keys() & set(there) else ():
    kept = f"is trained again: {gone[name]}; its model is in {PREVIOUS}" if name in gone else "is kept"
    print(f"{folder}: stage {name!r} {kept}", file=sys.stderr, flush=True)
  if gone or old.run != new.run:
    for report in REPORTS:
      (folder / report).unlink(missing_ok=True)
  # Rows compare with the first stage, and latencies are of all files in turns.
  first = {name for name in (*old.run[:1], *new.run[:1])}
  if len(first) > 1 or first & gone.keys():
    for row in (folder / "files").glob("*.json"):
      row.unlink()
  if gone or old.latency_runs != new.latency_runs:
    (folder / "files" / "latency.json").unlink(missing_ok=True)
  for name in gone:
    _remove(folder, name)


def _in_order(old: Experiment, new: Experiment) -> list[str]:
  """Returns the stages of the old experiment as the new one runs them, then the others."""
  return [name for name in dict.fromkeys((*new.run, *old.stages)) if name in old.stages]


def _paths(folder: Path, name: str) -> list[Path]:
  """Returns what a stage has in a run's directory, its model last: without a model a stage is not finished."""
  written = sorted((folder / "files").glob(f"{name}.*"))
  return [*written, folder / "tensorboard" / name, folder / "checkpoints" / name, model_file(folder, name)]


def _remove(folder: Path, name: str) -> None:
  from leanax.engine.store import metrics  # loads jax

  model = model_file(folder, name)
  if model.exists():
    (folder / PREVIOUS).mkdir(exist_ok=True)
    model.replace(folder / PREVIOUS / model.name)
  for path in _paths(folder, name):
    if path.is_dir():
      shutil.rmtree(path)
    else:
      path.unlink(missing_ok=True)
  metrics.place(folder / metrics.NAME, [], name)
  run_times.forget(folder, name)
