"""Checks of an experiment that no single key shows: stages and models that refer to each other, and their order."""

import pathlib
import re

from leanax.core.errors import UserError, unknown
from leanax.pipeline.config import tree
from leanax.pipeline.config.experiment import (
  ITSELF,
  NAME,
  Experiment,
  is_own_teacher,
  needs,
  starts_from_file,
  teacher_stages,
)

# The kinds of stages are files; they are named without being imported, for they load jax.
KINDS = sorted(p.stem for p in (pathlib.Path(__file__).parent.parent / "stages").glob("*.py") if p.stem != "__init__")


def check(config: Experiment) -> None:
  """Refuses an experiment whose values are out of range, or whose stages name what is not there or comes later.

  Raises:
    UserError: the key, and what it may be.
  """
  if not config.run:
    raise UserError("config key 'run' is empty; expected the names of the stages in their order")
  tree.check(config)
  for name, model in config.models.items():
    for key in ("entry", "key_map", "new"):
      if getattr(model, key) and not model.weights:
        raise UserError(f"config key 'models.{name}.{key}' is {getattr(model, key)!r}, but there are no 'weights'")
  for name in config.shared:
    if name not in config.run:
      raise unknown("stage in 'shared'", name, config.run)
  if config.seeds_over != "loop" and config.parallel != "jit":
    raise UserError(
      f"config key 'seeds_over' is {config.seeds_over!r}, which runs on one device; expected 'parallel' to be 'jit', "
      f"got {config.parallel!r}"
    )
  for name, stage in config.stages.items():
    if stage.patience and config.seeds_over != "loop":
      raise UserError(
        f"config key 'stages.{name}.patience' is {stage.patience}, and 'seeds_over' is {config.seeds_over!r}: seeds "
        "that train in the same steps cannot stop each at its own; expected 'loop'"
      )
  done: list[str] = []
  for name in config.run:
    if name not in config.stages:
      raise unknown("stage in 'run'", name, config.stages)
    if name in done:
      raise UserError(f"stage {name!r} stands twice in 'run'; expected each stage once")
    if not re.fullmatch(NAME, name):
      raise UserError(f"stage {name!r} names files; expected letters, digits, '_' and '-' only")
    check_stage(name, config, done)
    done.append(name)


def check_stage(name: str, config: Experiment, done: list[str]) -> None:
  """Refuses what one stage refers to that is not there; `done` are the stages that run before it."""
  stage = config.stages[name]
  tree.check(stage, f"stages.{name}")
  if stage.kind not in KINDS:
    raise unknown(f"kind in 'stages.{name}.kind'", stage.kind, KINDS)
  if stage.model not in config.models:
    raise unknown(f"model in 'stages.{name}.model'", stage.model, config.models)
  start = "" if starts_from_file(stage) else stage.start
  given = {"start": [start], "cut.from": [stage.cut.source], "teacher": teacher_stages(stage)}
  for key, others in given.items():
    for other in filter(None, others):
      if other not in done:
        expected = f"one that runs before it: {', '.join(done)}" if done else "none, as it is the first"
        raise UserError(f"config key 'stages.{name}.{key}' names stage {other!r}; expected {expected}")
  if is_own_teacher(stage) and stage.teacher != ITSELF:
    raise UserError(
      f"config key 'stages.{name}.teacher' is {stage.teacher!r}; expected {ITSELF!r} alone, or other teachers only"
    )
  if stage.cut.source and (stage.start or config.models[stage.model].weights):
    raise UserError(f"stage {name!r} has 'cut.from' and 'start' or weights of its model; expected one of them")
  if start and config.stages[start].model != stage.model:
    raise UserError(f"stage {name!r} trains {stage.model!r} but starts from {stage.start!r}, which holds another model")
  alone = [other for other in needs(stage) if other not in config.shared]
  if name in config.shared and alone:
    raise UserError(f"stage {name!r} is in 'shared' and needs stage {alone[0]!r}, which is not; expected both")
