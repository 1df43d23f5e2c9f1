"""Checks of an experiment that no single key shows: stages and models that refer to each other, and their order; keys
that are set and cannot have an effect.
"""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from leanax.core import imports
from leanax.core.errors import UserError, shown, unknown
from leanax.pipeline.config import tree
from leanax.pipeline.config.experiment import (
  ITSELF,
  NAME,
  Experiment,
  Stage,
  is_own_teacher,
  needs,
  starts_from_file,
  teacher_stages,
  teachers_of,
)

# The kinds of stages are files; they are named without being imported, for they load jax.
KINDS = sorted(p.stem for p in (pathlib.Path(__file__).parent.parent / "stages").glob("*.py") if p.stem != "__init__")


class Effect(NamedTuple):
  """When a key has an effect.

  Attributes:
    keys: of a group, dotted.
    has: whether they have one, of the group; asked where their value is not the default.
    words: the words after "has an effect only", in errors.
  """

  keys: tuple[str, ...]
  has: Callable[[Any], Any]
  words: str


def _changed(stage: Stage) -> bool:
  """Returns whether images are changed at random: a key of `augment` is set that none of the others is needed for."""
  needing = {key for effect in STAGE for key in effect.keys}
  given, plain = tree.values(stage.augment), tree.values(Stage().augment)
  return any(given[key] != plain[key] for key in given if f"augment.{key}" not in needing)


def _stores(stage: Stage) -> bool:
  """Returns whether a teacher's logits can be stored, as far as the config shows it."""
  return bool(teachers_of(stage)) and stage.teacher_mode == "eval" and stage.cache_teacher and _repeats(stage)


def _repeats(stage: Stage) -> bool:
  return bool(stage.augment.views) or not _changed(stage)


OWN = "; one by import path reads its keywords in 'optimizer.kwargs'"
# Every key that others switch on. A key that is not here has an effect of its own, or a check where it is read.
STAGE = (
  Effect(("cut.way", "cut.map"), lambda s: s.cut.source, "where 'cut.from' names a stage"),
  Effect(
    ("cut.keep",),
    lambda s: s.cut.source and s.cut.way == "layers",
    "where 'cut.from' names a stage and 'cut.way' is 'layers'",
  ),
  Effect(("ensemble",), lambda s: len(teachers_of(s)) > 1, "where 'teacher' names several"),
  Effect(("teacher_mode", "teacher_classes", "cache_teacher"), lambda s: s.teacher, "where 'teacher' names one"),
  Effect(
    ("cache_form", "cache_top_k"),
    _stores,
    "where a teacher's logits are stored: with a 'teacher' in mode 'eval', 'cache_teacher', and images that are the "
    "same in every epoch or of a number of 'augment.views'",
  ),
  Effect(("examples.unlabelled",), lambda s: s.examples.labelled, "where 'examples.labelled' keeps some labels"),
  Effect(
    ("augment.fill",), lambda s: s.augment.crop or any(s.augment.shift), "beside 'augment.crop' or 'augment.shift'"
  ),
  Effect(("augment.resized_crop_ratio",), lambda s: s.augment.resized_crop, "beside 'augment.resized_crop'"),
  Effect(
    ("augment.erase_area", "augment.erase_ratio", "augment.erase_fill"),
    lambda s: s.augment.erase,
    "beside 'augment.erase'",
  ),
  Effect(("augment.views", "augment.seed"), _changed, "where images are changed, such as by 'augment.flip'"),
  Effect(("optimizer.kwargs",), lambda s: imports.is_path(s.optimizer.name), "with an optimizer by import path"),
  Effect(
    ("optimizer.schedule_kwargs",), lambda s: imports.is_path(s.optimizer.schedule), "with a schedule by import path"
  ),
  Effect(
    ("optimizer.momentum",), lambda s: s.optimizer.name in ("sgd", "dot"), f"with the optimizer 'sgd' or 'dot'{OWN}"
  ),
  Effect(
    ("optimizer.nesterov",),
    lambda s: s.optimizer.name in ("sgd", "dot") and s.optimizer.momentum,
    f"with the optimizer 'sgd' or 'dot' and a momentum{OWN}",
  ),
  Effect(("optimizer.delta",), lambda s: s.optimizer.name == "dot", "with the optimizer 'dot'"),
  Effect(
    ("optimizer.weight_decay",),
    lambda s: s.optimizer.name in ("sgd", "adamw", "dot"),
    f"with the optimizer 'sgd', 'adamw' or 'dot'{OWN}",
  ),
  Effect(("optimizer.milestones",), lambda s: s.optimizer.schedule == "step", "with the schedule 'step'"),
  Effect(
    ("optimizer.decay",),
    lambda s: s.optimizer.schedule == "step" and s.optimizer.milestones,
    "with the schedule 'step' and its 'milestones'",
  ),
  Effect(("optimizer.scale_rate",), lambda s: s.quant.rules, "where 'quant.rules' has some"),
  Effect(("optimizer.reparam_rate",), lambda s: s.reparam.get("name"), "where 'reparam.name' names a method"),
  Effect(("quant.ends", "quant.calibration_batches"), lambda s: s.quant.rules, "where 'quant.rules' has some"),
  Effect(("export_failure",), lambda s: s.export, "where 'export' names a format"),
)
MODEL = (Effect(("entry", "key_map", "new"), lambda m: m.weights, "where there are 'weights'"),)
DATA = (
  Effect(("dir",), lambda d: d.name.startswith("tfds:"), "of a set 'tfds:NAME'"),
  Effect(("resize",), lambda d: d.size or d.kwargs.get("size"), "beside 'data.size'"),
)


def check_effects(group: Any, where: str, effects: tuple[Effect, ...]) -> None:
  """Refuses keys that are set and cannot have an effect; a value that is the default is not set.

  Args:
    group: a dataclass of settings.
    where: its key, for errors.
    effects: of its keys.

  Raises:
    UserError: names the key, and what would give it one.
  """
  plain = type(group)()
  for effect in effects:
    for key in effect.keys:
      value = _at(group, key)
      if value != _at(plain, key) and not effect.has(group):
        raise UserError(f"config key '{where}.{key}' is {shown(value)}; it has an effect only {effect.words}")


def _at(group: Any, key: str) -> Any:
  """Returns the value of a dotted key."""
  for name in key.split("."):
    group = getattr(group, name)
  return dict(group) if isinstance(group, Mapping) else group


def check(config: Experiment) -> None:
  """Refuses an experiment whose values are out of range, or whose stages name what is not there or comes later.

  Raises:
    UserError: the key, and what it may be.
  """
  if not config.run:
    raise UserError("config key 'run' is empty; expected the names of the stages in their order")
  tree.check(config)
  check_effects(config.data, "data", DATA)
  for name, model in config.models.items():
    tree.check(model, f"models.{name}")
    check_effects(model, f"models.{name}", MODEL)
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
  if stage.kind == "train":  # the others say themselves which keys they read
    check_effects(stage, f"stages.{name}", STAGE)
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
