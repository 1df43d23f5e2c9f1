"""The keys of an experiment, with their defaults: a config names what it sets, and every other key stands here.

The whole tree is filled in before the command line is read, so that any key can be changed there, and a misspelt key in
a config file is found whatever it was meant to change. This module imports no jax.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from leanax.core import ranges
from leanax.core.errors import UserError, unknown

OPTIMIZER = {
  "name": "adam",  # or "sgd", "adamw", "dot"
  "learning_rate": 1e-3,  # the highest
  "schedule": "cosine",  # or "constant", "step"
  "warmup_steps": 0,
  "milestones": (),  # of "step": where the rate is multiplied by `decay`, as shares of the stage
  "decay": 0.1,
  "momentum": 0.9,  # of "sgd" and "dot"
  "delta": 0.075,  # of "dot": how far the momenta of the task and the teacher are from it, below and above
  "nesterov": False,  # of "sgd" and "dot"
  "weight_decay": 0.0,  # of kernels only
  "clip_norm": 0.0,  # largest norm of the gradient; 0 for no clipping
  "scale_rate": 1.0,  # what the rate is multiplied by for learned quantization scales
  "accumulate": 1,  # micro-batches an update
  "ema": 0.0,  # decay of the averages of the weights; 0 for none
}

STAGE = {
  "model": "student",  # a key of `models`
  "start": "",  # the stage whose parameters this one starts from; "" starts afresh
  "cut": {
    "from": "",  # the stage whose model this one's, a smaller one of the same family, is cut out of, instead of `start`
    "way": "width",  # the leading channels; or "layers": whole blocks
    "keep": "alternate",  # which blocks: or "first", "effect" (those without which the validation loss rises most)
    "map": (),  # ((student's path, teacher's path), ...) of leaves, "*" for anything, where names are not enough
  },
  "teacher": "",  # the stage that this one learns from, or a .safetensors file of one, whose code is zoo's or that of
  # an entry of `models`; several, "a, b", are an ensemble; "itself": the average of its own weights, which needs
  # optimizer.ema
  "ensemble": "probabilities",  # what several teachers are a mean of; or "logits"
  "peers": 1,  # so many students from different seeds that are each other's teachers; the stage leaves the first
  "teacher_mode": "eval",  # or "train": batch norms use the batch's statistics, and their averages stay as they are;
  # "together": `teacher` names an entry of `stages`, whose model begins afresh and is trained in this stage's steps, by
  # the objective and the optimizer of that entry
  "teacher_classes": (),  # the teacher's class for each of the student's, where theirs are others
  "cache_teacher": True,  # compute the teacher's logits once, where augmentation allows, and keep them on disk
  "cache_form": "float32",  # or "float16", "int8"
  "cache_top_k": 0,  # keep the largest logits only, and the mass of the rest; 0 for all
  "examples": {
    "labelled": 0,  # keep so many labels, equally many of each class; 0 for all
    "unlabelled": True,  # keep the other examples, without labels
    "only": (),  # the classes that are trained on; () for all
    "without": (),  # classes that are left out
  },
  "epochs": 10,
  "batch_size": 64,
  "augment": {
    "crop": 0,  # pad by so many pixels, then cut at random
    "shift": (0, 0),  # move by up to (rows, columns) pixels
    "flip": False,  # mirror left and right
    "mixup": 0.0,  # alpha of the Beta distribution
    "fill": "zero",  # beyond the border: or "edge", "reflect"
    "views": 0,  # random versions of an image, reused epoch after epoch; 0 for a new one each epoch
    "seed": -1,  # of the random changes; -1 for the run's own; with a fixed one, seeds share a teacher's stored logits
  },
  "per_device_statistics": False,  # let batch norms use each device's own part of the batch
  "precision": "float32",  # of products; "bfloat16" keeps float32 masters, and scales and what meets grids
  "optimizer": OPTIMIZER,
  "objective": None,  # {a loss of kd: {"weight": share or schedule, "mask": "labelled", its keywords}}; with the key
  # "loss", a term may have another name than its loss
  "sparsity": None,  # {"name": a method of sparsity, its keywords}
  "quant": {
    "rules": (),  # ((site glob, setting such as "w8a8 learned"), ...); () trains in float
    "ends": "w8a8",  # least widths of the first and the last site
    "calibration_batches": 8,
  },
}

MODEL = {
  "name": "",  # "zoo.lenet:LeNet5" or "my_package.nets:Net"
  "kwargs": {},
  "weights": "",  # pretrained weights: a .safetensors or .msgpack file, or an orbax directory
  "key_map": (),  # ((pattern, replacement), ...) from the file's names to ours
  "output": "",  # of a model with several outputs the one that has the logits, such as "scores"
}

EXPERIMENT = {
  "name": "",
  "seed": 0,
  "seeds": 1,  # so many runs, of seed, seed + 1, ...
  "shared": (),  # stages that are trained once, with the first seed, for all seeds
  "seeds_over": "loop",  # one run after the other; or "vmap", "map": all in the same compiled steps
  "data": {
    "name": "",  # "digits", "tfds:mnist", "folder:PATH", ...
    "dir": "",  # where original files are looked for
    "validation": 0.0,  # share of the training examples that is held out; 0 for the set's own choice
    "limit": 0,  # at most so many examples of each split; 0 for all
    "kwargs": {},
  },
  "preprocess": {"scale": 1 / 255, "mean": (0.0,), "std": (1.0,)},  # (pixel * scale - mean) / std
  "models": None,
  "stages": None,
  "run": (),  # the names of the stages, in order
  "parallel": "jit",  # or "pmap", "mesh", "shard_map": over all local devices
  "steps_per_call": 0,  # steps of a loop inside one compiled call; 0: chosen by the device and the model
  "checkpoint_every": 1000,  # steps
  "keep": 2,  # checkpoints of a stage
  "gradient_norms": True,  # log the norm of each term's gradient, where a stage minimises several
  "evaluations": 20,  # of the validation split, a stage
  "latency_runs": 200,  # measured runs of each exported file
}

COUNT, SIZE = ranges.whole(1), ranges.whole(0)
RANGES = {
  "seeds": COUNT,
  "evaluations": COUNT,
  "checkpoint_every": COUNT,
  "keep": COUNT,
  "latency_runs": COUNT,
  "steps_per_call": SIZE,
  "data.limit": SIZE,
  "data.validation": ranges.NOT_NEGATIVE,
}
STAGE_RANGES = {  # of a sequence, its elements'
  "epochs": SIZE,
  "peers": COUNT,
  "batch_size": COUNT,
  "examples.labelled": SIZE,
  "examples.only": SIZE,
  "examples.without": SIZE,
  "teacher_classes": SIZE,
  "cache_top_k": SIZE,
  "augment.shift": SIZE,
  "optimizer.warmup_steps": SIZE,
  "optimizer.accumulate": COUNT,
  "optimizer.milestones": ranges.SHARE,
  "optimizer.ema": ranges.BELOW_ONE,
  "quant.calibration_batches": COUNT,
}

FREE = ("kwargs", "objective", "sparsity")  # groups whose keys belong to the functions that they name


def complete(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The experiment with every key that there is.

  Raises:
    UserError: a key that does not exist, a stage in `run` that is not described, or no stage at all.
  """
  given = config.to_dict()
  tree = _fill(given, EXPERIMENT, "")
  for group, defaults in (("models", MODEL), ("stages", STAGE)):
    if not isinstance(given.get(group), Mapping) or not given[group]:
      raise UserError(f"config key {group!r} is missing; expected a group with an entry for each of the {group}")
    tree[group] = {name: _fill(value, defaults, f"{group}.{name}") for name, value in given[group].items()}
  for stage in tree["stages"].values():
    stage["objective"] = stage["objective"] or {"hard_labels": {"weight": 1.0}}
    stage["sparsity"] = stage["sparsity"] or {"name": ""}
  return ml_collections.ConfigDict(_unshared(tree))


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses what no single key shows: stages that refer to models or stages which are not there, or come later.

  Raises:
    UserError: the key, and what it may be.
  """
  if not config.run:
    raise UserError("config key 'run' is empty; expected the names of the stages in their order")
  _check_ranges(config, RANGES, "")
  for name in config.shared:
    if name not in config.run:
      raise unknown("stage in 'shared'", name, config.run)
  done: list[str] = []
  for name in config.run:
    if name not in config.stages:
      raise unknown("stage in 'run'", name, config.stages)
    if name in done:
      raise UserError(f"stage {name!r} stands twice in 'run'; expected each stage once")
    if not re.fullmatch(r"[\w-]+", name):
      raise UserError(f"stage {name!r} names files; expected letters, digits, '_' and '-' only")
    check_stage(name, config, done)
    done.append(name)


def check_stage(name: str, config: Any, done: list[str]) -> None:
  """Refuses what a stage says of models, other stages and choices that are not there; `done` run before it."""
  stage = config.stages[name]
  _check_ranges(stage, STAGE_RANGES, f"stages.{name}.")
  if stage.model not in config.models:
    raise unknown(f"model in 'stages.{name}.model'", stage.model, config.models)
  given = {"start": [stage.start], "cut.from": [stage.cut["from"]], "teacher": teacher_stages(stage)}
  for key, others in given.items():
    for other in filter(None, others):
      if other not in done:
        expected = f"one that runs before it: {', '.join(done)}" if done else "none, as it is the first"
        raise UserError(f"config key 'stages.{name}.{key}' names stage {other!r}; expected {expected}")
  for key, choices in CHOICES.items():
    value = _at(stage, key)
    if value not in choices:
      raise unknown(f"choice in 'stages.{name}.{key}'", value, choices)
  if ITSELF in teachers(stage) and stage.teacher != ITSELF:
    raise UserError(
      f"config key 'stages.{name}.teacher' is {stage.teacher!r}; expected {ITSELF!r} alone, or other teachers only"
    )
  if stage.cut["from"] and (stage.start or config.models[stage.model].weights):
    raise UserError(f"stage {name!r} has 'cut.from' and 'start' or weights of its model; expected one of them")
  if stage.start and config.stages[stage.start].model != stage.model:
    raise UserError(f"stage {name!r} trains {stage.model!r} but starts from {stage.start!r}, which holds another model")
  alone = [other for other in needs(stage) if other not in config.shared]
  if name in config.shared and alone:
    raise UserError(f"stage {name!r} is in 'shared' and needs stage {alone[0]!r}, which is not; expected both")


ITSELF = "itself"
TOGETHER = "together"
FILE = ".safetensors"
CHOICES = {
  "cache_form": ("float32", "float16", "int8"),
  "cut.keep": ("alternate", "first", "effect"),
  "cut.way": ("width", "layers"),
  "ensemble": ("probabilities", "logits"),
  "teacher_mode": ("eval", "train", TOGETHER),
}


def model_code(config: Any) -> set[str]:
  """The import paths of all models that an experiment names: the code that files may hold models of."""
  return {entry["name"] for entry in config.models.values()}


def teachers(stage: Any) -> list[str]:
  """The stages and files that a stage learns from."""
  return [name.strip() for name in stage.teacher.split(",") if name.strip()]


def teacher_stages(stage: Any) -> list[str]:
  """The stages among them that have to run before; a teacher that is trained together with its student has not."""
  if stage.teacher_mode == TOGETHER:
    return []
  return [name for name in teachers(stage) if name != ITSELF and not name.endswith(FILE)]


def needs(stage: Any) -> list[str]:
  """The stages that a stage begins with or learns from."""
  return [name for name in (stage.start, stage.cut["from"], *teacher_stages(stage)) if name]


def _check_ranges(group: Any, table: Mapping[str, ranges.Range], where: str) -> None:
  for key, expected in table.items():
    value = _at(group, key)
    each = {f"{key}[{index}]": x for index, x in enumerate(value)} if isinstance(value, tuple | list) else {key: value}
    for name, number in each.items():
      ranges.check(f"config key '{where}{name}'", number, expected)


def _at(group: Any, key: str) -> Any:
  return functools.reduce(lambda owner, name: owner[name], key.split("."), group)


def _unshared(value: Any) -> Any:
  """A copy in which no group is another one: a file may name a group twice, but a change is meant for one of them."""
  if isinstance(value, Mapping):
    return {key: _unshared(child) for key, child in value.items()}
  return type(value)(map(_unshared, value)) if isinstance(value, tuple | list) else value


def _fill(given: Any, defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
  given = _group(given, where)
  for key in given:
    if key not in defaults:
      known = [f"{where}.{name}".lstrip(".") for name in defaults]
      raise unknown("config key", f"{where}.{key}".lstrip("."), known)
  filled = dict(defaults)
  for key, value in given.items():
    default, place = defaults[key], f"{where}.{key}".lstrip(".")
    if key in FREE:
      filled[key] = value if value is default else _group(value, place)
    elif isinstance(default, Mapping):
      filled[key] = _fill(value, default, place)
    else:
      filled[key] = _like(value, default, place)
  return filled


def _group(value: Any, where: str) -> Mapping[str, Any]:
  if not isinstance(value, Mapping):
    raise UserError(f"config key {where!r} must be a group, got {value!r}")
  return value


def _like(value: Any, default: Any, where: str) -> Any:
  """The value, if it has the default's type (an int may stand for a float)."""
  if isinstance(default, float) and type(value) in (int, float):
    ranges.check(f"config key {where!r}", value, ranges.FINITE)
    return float(value)
  if default is None or type(value) is type(default):
    return value
  raise UserError(f"config key {where!r} expects {type(default).__name__}, got {value!r}")
