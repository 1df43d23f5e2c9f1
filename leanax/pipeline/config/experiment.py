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

# The numbers that keys may be; every key that is a number has one of these, and upper ends stand where more is a slip
# of the hand, or would fill the memory or the day before anything is learned.
COUNT, SIZE = ranges.whole(1), ranges.whole(0)
SEED = ranges.whole(0, 2_000_000_000)  # int32 also holds it with the numbers that seeds, peers and teachers add to it
OWN_SEED = ranges.whole(-1, 2_000_000_000)  # or that of the run
RUNS = ranges.whole(1, 10_000)  # each has a directory, and a model in memory where seeds train together
PEERS = ranges.whole(1, 100)  # each has a model, a gradient and an optimizer in memory
EPOCHS = ranges.whole(0, 1_000_000)  # the batches of a stage are counted in int32, which its preparation checks
STEPS_PER_CALL = ranges.whole(0, 10_000)  # metrics of every step are held in an array
VIEWS = ranges.whole(0, 10_000)  # a teacher's logits are stored for each
PIXELS = ranges.whole(0, 16_384)  # of a side of an image; more would not fit memory
SIDE = ranges.whole(1, 16_384)
BATCHES = ranges.whole(1, 100_000)  # read before the first step
REPEATS = ranges.whole(1, 100_000)  # of a measurement
SECONDS = ranges.between(0, 3600)  # of a measurement, for each layer
POINTS = ranges.between(0, 1000)  # points, or per cent, of which a metric may have more than a hundred
RATE = ranges.between(1e-10, 1000)  # with 0 nothing is learned; below it float32 weights do not move
FACTOR = ranges.or_zero(ranges.between(1e-6, 1e6))  # on a rate; with 0 what it is for stays as it is
MOMENTUM = ranges.BELOW_ONE  # at 1 the sum of all gradients never fades, and below 0 it alternates
DECAY = ranges.between(1e-6, 1)  # with 0 nothing is learned afterwards, and above 1 the rate grows
WEIGHT_DECAY = ranges.between(0, 10)  # negative weights grow without end, and above 10 none is left after a few steps
CLIP = ranges.or_zero(ranges.between(1e-6, 1e6))  # with less every gradient is noise, and more is never reached
DELTA = ranges.between(-1, 1)  # of two momenta, which are from 0 to below 1
ALPHA = ranges.or_zero(ranges.between(1e-3, 1000))  # of a Beta distribution; with less its draws underflow
COLOUR = ranges.between(0, 10)  # a factor of up to eleven: more leaves black and white
HUE = ranges.between(0, 0.5)  # half of a circle is as far as it goes
SCALE = ranges.between(1e-6, 1e6)  # of an input: with 0 or less it is lost or turned over, with more float32 overflows
OFFSET = ranges.between(-1e6, 1e6)  # likewise
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
  learning_rate: float = setting(1e-3, RATE)  # the highest
  # Or "constant", "step"; or an import path, "my.optim:poly": a function poly(learning_rate, steps, keywords) that
  # returns a function of the step. The warm-up comes before it.
  schedule: str = "cosine"
  schedule_kwargs: Mapping[str, Any] = free()  # the keywords of a schedule by import path
  warmup_steps: int = setting(0, SIZE)
  milestones: tuple[float, ...] = setting((), ranges.SHARE)  # of "step": shares of the stage at which the rate decays
  decay: float = setting(0.1, DECAY)  # of "step": the factor at each milestone
  momentum: float = setting(0.9, MOMENTUM)  # of "sgd" and "dot"
  # Of "dot": how far the momenta of the task and the teacher are from it, below and above.
  delta: float = setting(0.075, DELTA)
  nesterov: bool = False  # of "sgd" and "dot"
  weight_decay: float = setting(0.0, WEIGHT_DECAY)  # of kernels only
  clip_norm: float = setting(0.0, CLIP)  # largest norm of the gradient; 0 for no clipping
  scale_rate: float = setting(1.0, FACTOR)  # factor on the rate of learned quantization scales
  # Factor on the rate of what a reparameterization trains, such as thresholds.
  reparam_rate: float = setting(1.0, FACTOR)
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

  crop: int = setting(0, PIXELS)  # pad by this many pixels, then crop at random
  shift: tuple[int, ...] = setting((0, 0), PIXELS, lengths=(2,))  # move by up to (rows, columns) pixels
  flip: bool = False  # mirror left and right
  # (least, largest) share of a crop that is stretched back.
  resized_crop: tuple[float, ...] = setting((), ranges.SHARE, lengths=(0, 2))
  # (least, largest) width over height.
  resized_crop_ratio: tuple[float, ...] = setting((3 / 4, 4 / 3), SCALE, lengths=(2,))
  brightness: float = setting(0.0, COLOUR)  # factors from 1 - brightness to 1 + brightness
  contrast: float = setting(0.0, COLOUR)  # likewise
  saturation: float = setting(0.0, COLOUR)  # likewise
  hue: float = setting(0.0, HUE)  # largest turn, as a share of the circle of hues, at most 0.5
  erase: float = setting(0.0, ranges.SHARE)  # probability that a random box is filled
  erase_area: tuple[float, ...] = setting((0.02, 0.33), ranges.SHARE, lengths=(2,))  # (least, largest) share of the box
  erase_ratio: tuple[float, ...] = setting((0.3, 3.3), SCALE, lengths=(2,))  # (least, largest) width over height
  erase_fill: str = setting("zero", choices=("zero", "mean", "random"), what="fill")
  # alpha of the Beta distribution; where both are on, an example has one of them, by chance
  mixup: float = setting(0.0, ALPHA)
  cutmix: float = setting(0.0, ALPHA)
  fill: str = setting("zero", choices=("zero", "edge", "reflect"), what="fill")  # beyond the border
  # {"name": the import path of your own function(keys, images) -> images, its keywords}
  function: Mapping[str, Any] = free({"name": ""})
  views: int = setting(0, VIEWS)  # random versions of an image, reused epoch after epoch; 0 for a new one each epoch
  # Of the random changes; -1 for the run's own; with a fixed one, seeds share a teacher's stored logits.
  seed: int = setting(-1, OWN_SEED)


@dataclasses.dataclass(frozen=True)
class Quant:
  """The quantization of a stage: rules for its sites."""

  rules: tuple[Any, ...] = ()  # ((site glob, setting such as "w8a8 learned"), ...); () trains in float
  ends: str = "w8a8"  # least widths of the first and the last site
  calibration_batches: int = setting(8, BATCHES)


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
  peers: int = setting(1, PEERS)  # students from different seeds that are each other's teachers; the first is kept
  # In "train" a teacher's batch norms use the batch's statistics, and their averages stay as they are. With "together"
  # `teacher` names an entry of `stages`, which need not run: its model starts afresh and is trained in this stage's
  # steps, on the objective and with the optimizer of that entry.
  teacher_mode: str = setting("eval", choices=("eval", "train", TOGETHER))
  teacher_classes: tuple[int, ...] = setting((), SIZE)  # the teacher's class for each of the student's; () where equal
  cache_teacher: bool = True  # compute the teacher's logits once, where augmentation allows, and keep them on disk
  cache_form: str = setting("float32", choices=("float32", "float16", "int8"))
  cache_top_k: int = setting(0, SIZE)  # keep the largest logits only, and the mass of the rest; 0 for all
  examples: Examples = Examples()
  epochs: int = setting(10, EPOCHS)
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
  # (pattern, replacement) from names of the file that are not ours; docs/data.md has the other forms.
  key_map: tuple[tuple[Any, ...], ...] = ()
  new: tuple[str, ...] = ()  # globs of leaves that stay fresh and are not read from it, such as a head: ("Dense_1/*",)
  output: str = ""  # of a model with several outputs the one that has the logits, such as "scores"


@dataclasses.dataclass(frozen=True)
class Data:
  """The data set."""

  name: str = ""  # "digits", "tfds:mnist", "folder:PATH", ...
  dir: str = ""  # where original files are looked for
  validation: float = setting(0.0, ranges.BELOW_ONE)  # held-out share of the training examples; 0: the set's choice
  limit: int = setting(0, SIZE)  # at most this many examples per split; 0 for all
  # (height, width) of "tfds:" and "folder:" sets; () as they are.
  size: tuple[int, ...] = setting((), SIDE, lengths=(0, 2))
  # How images are brought to `size`: both sides fitted; or the aspect kept, by a centred crop, or with black around.
  resize: str = setting("stretch", choices=("stretch", "crop", "pad"), what="way")
  kwargs: Mapping[str, Any] = free()


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """From pixels to the network's input: (pixel * scale - mean) / std."""

  scale: float = setting(1 / 255, SCALE)
  mean: tuple[float, ...] = setting((0.0,), OFFSET)
  std: tuple[float, ...] = setting((1.0,), SCALE)


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A whole experiment: data, models, and the stages that make a compressed model of one of them."""

  name: str = ""
  seed: int = setting(0, SEED)
  seeds: int = setting(1, RUNS)  # number of runs, of seed, seed + 1, ...
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
  # Steps of a loop inside one compiled call; 0: chosen by device and model.
  steps_per_call: int = setting(0, STEPS_PER_CALL)
  checkpoint_every: int = setting(1000, COUNT)  # steps; at most half of a stage, and three minutes
  keep: int = setting(2, COUNT)  # checkpoints per stage
  gradient_norms: bool = True  # log the norm of each term's gradient, where a stage minimises several
  evaluations: int = setting(20, COUNT)  # of the validation split, per stage
  # What the file to ship may lose to the first one: points, or per cent of the value of a metric that is no share.
  most_lost: float = setting(1.0, POINTS)
  latency_runs: int = setting(200, REPEATS)  # measured runs of each exported file
  layer_seconds: float = setting(2.0, SECONDS)  # of timing the layers of an exported file; 0 for none
  # Words that the exported files say of themselves, beside their classes and how they were made.
  about: str = ""  # what the network is
  licence: str = ""  # the licence that it is under, a name such as "Apache-2.0" or a text


def teachers_of(stage: Stage) -> list[str]:
  """Returns all that a stage learns from, as its key `teacher` lists them."""
  return [name.strip() for name in stage.teacher.split(",") if name.strip()]


def teacher_names(stage: Stage) -> list[str]:
  """Returns the trained stages and files that a stage learns from; none where it is its own teacher, or trains it."""
  if stage.teacher_mode == TOGETHER:
    return []
  return [name for name in teachers_of(stage) if name != ITSELF]


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
  return ITSELF in teachers_of(stage)


def resized(data: Mapping[str, Any]) -> str:
  """Returns how the images of a config's group `data` are resized; "" where they are not."""
  kwargs, kind = data["kwargs"], data.get("name", "folder").partition(":")[0]
  if kind not in ("folder", "masks", "tfds"):  # a function of one's own says nothing of it
    return ""
  return kwargs.get("resize", data.get("resize", "stretch")) if data.get("size") or kwargs.get("size") else ""


def model_code(config: Experiment) -> set[str]:
  """Returns the import paths of all models of an experiment: the code that files may hold models of."""
  return {entry.name for entry in config.models.values()}
