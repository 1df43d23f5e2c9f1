"""The keys of an experiment as frozen dataclasses: names, types, defaults and ranges are these fields and nothing else.

A config file names what it sets; every other key has its default from here (`leanax.pipeline.config.tree`). Groups
whose keys belong to a function, such as the keywords of a loss, are plain mappings.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from leanax.core import ranges
from leanax.pipeline.config.tree import entries, free, setting

COUNT, SIZE = ranges.whole(1), ranges.whole(0)
ITSELF = "itself"  # a stage whose teacher is the average of its own weights
TOGETHER = "together"  # the mode of a teacher that is trained in the steps of its student
NAME = r"[\w-]+"  # of a stage
FILE = ".safetensors"  # the end of a teacher's name that is a file and not a stage


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """The optimizer of a stage."""

  # Or "sgd", "adamw", "dot"; or an import path, "my.optim:lion": a function lion(learning_rate, keywords) that returns
  # an optax transformation, where learning_rate is a function of the step. It has no weight decay but its own.
  name: str = "adam"
  kwargs: Mapping[str, Any] = free()  # the keywords of an optimizer by import path
  learning_rate: float = 1e-3  # the highest
  # Or "constant", "step"; or an import path, "my.optim:poly": a function poly(learning_rate, steps, keywords) that
  # returns a function of the step. The warm-up comes before it.
  schedule: str = "cosine"
  schedule_kwargs: Mapping[str, Any] = free()  # the keywords of a schedule by import path
  warmup_steps: int = setting(0, SIZE)
  milestones: tuple[float, ...] = setting((), ranges.SHARE)  # of "step": shares of the stage at which the rate decays
  decay: float = 0.1  # of "step": the factor at each milestone
  momentum: float = 0.9  # of "sgd" and "dot"
  delta: float = 0.075  # of "dot": how far the momenta of the task and the teacher are from it, below and above
  nesterov: bool = False  # of "sgd" and "dot"
  weight_decay: float = 0.0  # of kernels only
  clip_norm: float = 0.0  # largest norm of the gradient; 0 for no clipping
  scale_rate: float = 1.0  # factor on the rate of learned quantization scales
  reparam_rate: float = 1.0  # factor on the rate of what a reparameterization trains, such as thresholds
  accumulate: int = setting(1, COUNT)  # micro-batches per update
  ema: float = setting(0.0, ranges.BELOW_ONE)  # decay of the averages of the weights; 0 for none


@dataclasses.dataclass(frozen=True)
class Cut:
  """The cut of a stage's model out of a larger one of the same family, instead of `start`."""

  source: str = setting("", key="from")  # the stage whose model it is cut out of; "" for none
  way: str = setting("width", choices=("width", "layers"))  # the leading channels, or whole blocks
  # The kept blocks: every second, the first ones, or those without which the validation loss rises most.
  keep: str = setting("alternate", choices=("alternate", "first", "effect"))
  map: tuple[tuple[str, str], ...] = ()  # (student's path, teacher's path) of leaves, "*" for anything


@dataclasses.dataclass(frozen=True)
class Examples:
  """The training examples of a stage."""

  labelled: int = setting(0, SIZE)  # keep this many labels, equally many per class; 0 for all
  unlabelled: bool = True  # keep the other examples, without labels
  only: tuple[int, ...] = setting((), SIZE)  # the classes that are trained on; () for all
  without: tuple[int, ...] = setting((), SIZE)  # classes that are left out
  balanced: bool = False  # draw every class equally often in an epoch, whatever the numbers of their examples


@dataclasses.dataclass(frozen=True)
class Augment:
  """Random changes of the training images."""

  crop: int = 0  # pad by this many pixels, then crop at random
  shift: tuple[int, ...] = setting((0, 0), SIZE)  # move by up to (rows, columns) pixels
  flip: bool = False  # mirror left and right
  resized_crop: tuple[float, ...] = setting((), ranges.SHARE)  # (least, largest) share of a crop that is stretched back
  resized_crop_ratio: tuple[float, ...] = setting((3 / 4, 4 / 3), ranges.POSITIVE)  # (least, largest) width over height
  brightness: float = 0.0  # factors from 1 - brightness to 1 + brightness
  contrast: float = 0.0  # likewise
  saturation: float = 0.0  # likewise
  hue: float = 0.0  # largest turn, as a share of the circle of hues, at most 0.5
  erase: float = setting(0.0, ranges.SHARE)  # probability that a random box is filled
  erase_area: tuple[float, ...] = setting((0.02, 0.33), ranges.SHARE)  # (least, largest) share of the box
  erase_ratio: tuple[float, ...] = setting((0.3, 3.3), ranges.POSITIVE)  # (least, largest) width over height
  erase_fill: str = setting("zero", choices=("zero", "mean", "random"), what="fill")
  # alpha of the Beta distribution; where both are on, an example has one of them, by chance
  mixup: float = 0.0
  cutmix: float = 0.0
  fill: str = "zero"  # beyond the border: or "edge", "reflect"
  # {"name": the import path of your own function(keys, images) -> images, its keywords}
  function: Mapping[str, Any] = free({"name": ""})
  views: int = 0  # random versions of an image, reused epoch after epoch; 0 for a new one each epoch
  seed: int = -1  # of the random changes; -1 for the run's own; with a fixed one, seeds share a teacher's stored logits


@dataclasses.dataclass(frozen=True)
class Quant:
  """The quantization of a stage: rules for its sites."""

  rules: tuple[Any, ...] = ()  # ((site glob, setting such as "w8a8 learned"), ...); () trains in float
  ends: str = "w8a8"  # least widths of the first and the last site
  calibration_batches: int = setting(8, COUNT)


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage: its model, its teachers, its objective and its optimizer."""

  kind: str = "train"  # a file of `leanax/pipeline/stages`
  model: str = "student"  # a key of `models`
  # The stage whose parameters this one starts from, or a file of weights that have the model's names, such as another
  # run's stage in float; "" starts afresh.
  start: str = ""
  cut: Cut = Cut()
  # The stage that this one learns from, or a .safetensors file of one, whose code is zoo's or that of an entry of
  # `models`; several, "a, b", are an ensemble; "itself": the average of its own weights, which needs optimizer.ema.
  teacher: str = ""
  ensemble: str = setting("probabilities", choices=("probabilities", "logits"))  # what is averaged over teachers
  peers: int = setting(1, COUNT)  # students from different seeds that are each other's teachers; the first is kept
  # In "train" a teacher's batch norms use the batch's statistics, and their averages stay as they are. With "together"
  # `teacher` names an entry of `stages`, which need not run: its model starts afresh and is trained in this stage's
  # steps, on the objective and with the optimizer of that entry.
  teacher_mode: str = setting("eval", choices=("eval", "train", TOGETHER))
  teacher_classes: tuple[int, ...] = setting((), SIZE)  # the teacher's class for each of the student's; () where equal
  cache_teacher: bool = True  # compute the teacher's logits once, where augmentation allows, and keep them on disk
  cache_form: str = setting("float32", choices=("float32", "float16", "int8"))
  cache_top_k: int = setting(0, SIZE)  # keep the largest logits only, and the mass of the rest; 0 for all
  examples: Examples = Examples()
  epochs: int = setting(10, SIZE)
  # Stop after so many evaluations (key `evaluations`) without a better validation accuracy, and keep the best state and
  # not the last one; 0 for neither. The learning rate's schedule stays that of all epochs.
  patience: int = setting(0, SIZE)
  batch_size: int = setting(64, COUNT)
  augment: Augment = Augment()
  per_device_statistics: bool = False  # let batch norms use each device's own part of the batch
  # Of products; "bfloat16" keeps float32 masters, scales, and values that meet grids.
  precision: str = setting("float32", choices=("float32", "bfloat16"), what="precision")
  optimizer: Optimizer = Optimizer()
  # Globs of the leaves of the model that stay as they are, such as "Conv_*": parameters, their learned scales, and the
  # running statistics of norms ("BatchNorm_*/scale" leaves these free).
  freeze: tuple[str, ...] = ()
  # {a loss of kd: {"weight": share or schedule, "mask": "labelled", its keywords}}; with the key "loss" a term may have
  # another name than its loss.
  objective: Mapping[str, Any] = free({"hard_labels": {"weight": 1.0}})
  # {"name": a method of sparsity, its keywords}; random masks have the run's seed where "seed" is not among these.
  sparsity: Mapping[str, Any] = free({"name": ""})
  # {"name": a method of sparsity.reparam, its keywords}: the weights as functions of what is trained. What it gives in
  # evaluation mode is evaluated, kept and exported.
  reparam: Mapping[str, Any] = free({"name": ""})
  quant: Quant = Quant()
  # Formats of the stage's files, of `deploy.file_format`, such as "litert(weights=float16)"; () for none.
  export: tuple[str, ...] = ("tflite",)
  # What cannot be exported is refused before anything trains ("refuse"), or becomes a row of the report that says why
  # ("report"). What only trained numbers show becomes a row in both; with "refuse" the program then ends with status 1.
  export_failure: str = setting("refuse", choices=("refuse", "report"))


@dataclasses.dataclass(frozen=True)
class Model:
  """A model: the import path of its class or function, its keywords, and perhaps pretrained weights."""

  name: str = ""  # "zoo.lenet:LeNet5" or "my_package.nets:Net"
  kwargs: Mapping[str, Any] = free()
  weights: str = ""  # pretrained weights: a .pth, .safetensors or .msgpack file, or an orbax directory
  entry: str = ""  # the part of that file that holds them, such as "ema/params"; "" where one alone does
  key_map: tuple[tuple[str, str], ...] = ()  # (pattern, replacement) from names of the file that are not ours
  new: tuple[str, ...] = ()  # globs of leaves that stay fresh and are not read from it, such as a head: ("Dense_1/*",)
  output: str = ""  # of a model with several outputs the one that has the logits, such as "scores"


@dataclasses.dataclass(frozen=True)
class Data:
  """The data set."""

  name: str = ""  # "digits", "tfds:mnist", "folder:PATH", ...
  dir: str = ""  # where original files are looked for
  validation: float = setting(0.0, ranges.NOT_NEGATIVE)  # held-out share of the training examples; 0: the set's choice
  limit: int = setting(0, SIZE)  # at most this many examples per split; 0 for all
  size: tuple[int, ...] = setting((), COUNT)  # (height, width) of "tfds:" and "folder:" sets; () as they are
  # How images are brought to `size`: both sides fitted; or the aspect kept, by a centred crop, or with black around.
  resize: str = setting("stretch", choices=("stretch", "crop", "pad"), what="way")
  kwargs: Mapping[str, Any] = free()


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """From pixels to the network's input: (pixel * scale - mean) / std."""

  scale: float = 1 / 255
  mean: tuple[float, ...] = (0.0,)
  std: tuple[float, ...] = (1.0,)


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A whole experiment: data, models, and the stages that make a compressed model of one of them."""

  name: str = ""
  seed: int = 0
  seeds: int = setting(1, COUNT)  # number of runs, of seed, seed + 1, ...
  shared: tuple[str, ...] = ()  # stages that are trained once, with the first seed, for all seeds
  # One run after the other, or all in the same compiled steps.
  seeds_over: str = setting("loop", choices=("loop", "vmap", "map"), what="way")
  data: Data = Data()
  # What models and files are judged by, of `engine.metrics` or by import path, each a name or {"name": ..., its
  # keywords}; reports compare and recommend by the first.
  metrics: tuple[Any, ...] = ("accuracy",)
  preprocess: Preprocess = Preprocess()
  models: Mapping[str, Model] = entries(Model)
  stages: Mapping[str, Stage] = entries(Stage)
  run: tuple[str, ...] = ()  # the names of the stages, in order
  # The way in which a step is spread over all local devices.
  parallel: str = setting("jit", choices=("jit", "pmap", "mesh", "shard_map"), what="parallel mode")
  steps_per_call: int = setting(0, SIZE)  # steps of a loop inside one compiled call; 0: chosen by device and model
  checkpoint_every: int = setting(1000, COUNT)  # steps; at most half of a stage, and three minutes
  keep: int = setting(2, COUNT)  # checkpoints per stage
  gradient_norms: bool = True  # log the norm of each term's gradient, where a stage minimises several
  evaluations: int = setting(20, COUNT)  # of the validation split, per stage
  # What the file to ship may lose to the first one: points, or per cent of the value of a metric that is no share.
  most_lost: float = setting(1.0, ranges.NOT_NEGATIVE)
  latency_runs: int = setting(200, COUNT)  # measured runs of each exported file
  layer_seconds: float = setting(2.0, ranges.NOT_NEGATIVE)  # of timing the layers of an exported file; 0 for none
  # Words that the exported files say of themselves, beside their classes and how they were made.
  about: str = ""  # what the network is
  licence: str = ""  # the licence that it is under, a name such as "Apache-2.0" or a text


def teacher_names(stage: Stage) -> list[str]:
  """Returns the trained stages and files that a stage learns from; none where it is its own teacher, or trains it."""
  if stage.teacher_mode == TOGETHER:
    return []
  return [name for name in _listed(stage) if name != ITSELF]


def teacher_stages(stage: Stage) -> list[str]:
  """Returns the stages among `teacher_names`."""
  return [name for name in teacher_names(stage) if not name.endswith(FILE)]


def described(config: Experiment, stage: Stage) -> Stage | None:
  """Returns the entry of `stages` that describes the teacher of a stage which trains it; None for any other stage."""
  return config.stages[stage.teacher] if stage.teacher_mode == TOGETHER else None


def starts_from_file(stage: Stage) -> bool:
  """Returns whether a stage's start is a file: it has a character that no name of a stage has."""
  return bool(stage.start) and not re.fullmatch(NAME, stage.start)


def needs(stage: Stage) -> list[str]:
  """Returns the stages that a stage starts from or learns from."""
  start = "" if starts_from_file(stage) else stage.start
  return [name for name in (start, stage.cut.source, *teacher_stages(stage)) if name]


def is_own_teacher(stage: Stage) -> bool:
  """Returns whether a stage's teacher, or one of several, is the average of its own weights."""
  return ITSELF in _listed(stage)


def resized(data: Mapping[str, Any]) -> str:
  """Returns how the images of a config's group `data` are resized; "" where they are not."""
  kwargs, kind = data["kwargs"], data.get("name", "folder").partition(":")[0]
  if kind not in ("folder", "masks", "tfds"):  # a function of one's own says nothing of it
    return ""
  return kwargs.get("resize", data.get("resize", "stretch")) if data.get("size") or kwargs.get("size") else ""


def model_code(config: Experiment) -> set[str]:
  """Returns the import paths of all models of an experiment: the code that files may hold models of."""
  return {entry.name for entry in config.models.values()}


def _listed(stage: Stage) -> list[str]:
  return [name.strip() for name in stage.teacher.split(",") if name.strip()]
