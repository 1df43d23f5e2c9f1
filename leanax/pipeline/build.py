"""From names in a config to functions: nowhere else, and with every keyword checked before anything compiles."""

import glob
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import kd
import quant
import sparsity
from leanax.core import ranges
from leanax.core.errors import UserError, unknown
from leanax.core.methods import method
from leanax.engine import data as datasets
from leanax.engine.data import Augment, Dataset, Input, Preprocess, Split
from leanax.engine.data.splits import label_some
from leanax.engine.models import model as models
from leanax.engine.models.interface import Model
from leanax.engine.train import optim
from leanax.graph.kinds import Reparam
from leanax.pipeline import sparse
from leanax.pipeline.config import experiment, tree
from leanax.pipeline.config.experiment import Experiment, Stage

Stacked = Callable[[], Mapping[str, Sequence[int]]]
SHARES = ("start", "end", "at")  # what a schedule gives as a share of the stage


def call(where: str, fn: Callable[..., Any], given: Mapping[str, Any], *positional: Any) -> Any:
  """`fn(*positional, **given)`, once its signature has every keyword and nothing it needs is missing.

  Raises:
    UserError: a keyword that `fn` does not take (the nearest is named), or one that it needs; `where` names the config
      group.
  """
  parameters = list(inspect.signature(fn).parameters.values())[len(positional) :]
  names = {p.name: p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
  for key in given:
    if key not in names:
      raise unknown("config key", f"{where}.{key}", [f"{where}.{name}" for name in names])
  for name, parameter in names.items():
    if parameter.default is parameter.empty and name not in given:
      raise UserError(f"config key '{where}.{name}' is missing")
  try:
    return fn(*positional, **given)
  except (TypeError, ValueError, UserError) as error:
    raise UserError(f"config group {where!r}: {' '.join(str(error).split())}") from error


def named(where: str, package: ModuleType, group: Mapping[str, Any], *positional: Any) -> Any:
  """The method `group["name"]` of a package, called with the group's other keys."""
  if "name" not in group:
    raise UserError(f"config key '{where}.name' is missing; expected a method of {package.__name__}")
  return call(where, method(package, group["name"]), {k: v for k, v in group.items() if k != "name"}, *positional)


def model(entry: experiment.Model) -> Model:
  """The model that an entry of `models` describes."""
  return models.load(entry.name, dict(entry.kwargs))


OF_TERM = ("loss", "weight", "mask", "ignore_label", "output")


def objective(stage: str, group: Mapping[str, Any], updates: int = 1, output: str = "") -> kd.Weighted:
  """The weighted sum that a stage minimises: `{loss of kd: {"weight": share, "mask": which, its keywords}}`.

  "ignore_label" and "output" are those of `kd.Term`, too.

  Args:
    stage: its name, for errors.
    group: its terms. A term with a key "loss" may have any name. A weight or keyword may be a schedule of
      `kd.schedules`, whose "start", "end" and "at" are shares of the stage.
    updates: of the whole stage.
    output: what terms read that name no output, of a model with several.
  """
  terms = []
  for name, given in group.items():
    where = f"stages.{stage}.objective.{name}"
    if not isinstance(given, Mapping):
      raise UserError(f"config key {where!r} must be a group such as {{'weight': 1.0}}, got {given!r}")
    numbers = {key: _number(f"{where}.{key}", value, updates) for key, value in given.items()}
    keywords = {key: value for key, value in numbers.items() if key not in OF_TERM}
    loss = call(where, method(kd, given.get("loss", name), folder="losses"), keywords)
    weight = numbers.get("weight", 1.0)
    ranges.check(f"config key '{where}.weight'", weight, ranges.NOT_NEGATIVE, varies=True)
    weight = weight if callable(weight) else float(weight)
    more: dict[str, Any] = {"output": output} | {
      key: given[key] for key in ("mask", "ignore_label", "output") if key in given
    }
    terms.append(kd.Term(name, loss, weight, **more))
  return kd.weighted(terms, output)


def _number(where: str, value: Any, updates: int) -> Any:
  """A value of a term, or the schedule that a group stands for; of a sequence, one for each element."""
  if isinstance(value, list | tuple):
    return type(value)(_number(f"{where}[{index}]", each, updates) for index, each in enumerate(value))
  if not isinstance(value, Mapping):
    return value
  given = _in_steps(where, value, updates)
  if "start" in given and "end" in given:
    if not value["start"] < value["end"]:
      raise UserError(
        f"config key '{where}.start' is {value['start']} and '{where}.end' {value['end']}; expected it to end later"
      )
    given["end"] = max(given["end"], given["start"] + 1)  # in few updates both may round to one
  return named(where, kd.schedules, given)


def check_sparsity(name: str, stage: Stage) -> None:
  """Refuses an unknown method; its keywords are checked where the stage's number of updates is known."""
  if stage.sparsity.get("name"):
    sparse.method(stage.sparsity["name"])
  elif set(stage.sparsity) - {"name"}:
    raise UserError(f"config key 'stages.{name}.sparsity.name' is missing; expected a method of sparsity")


def check_reparam(name: str, stage: Stage) -> None:
  """Refuses an unknown reparameterization, and keywords that it does not take."""
  if stage.reparam.get("name"):
    reparam(name, stage)
  elif set(stage.reparam) - {"name"}:
    raise UserError(f"config key 'stages.{name}.reparam.name' is missing; expected a method of sparsity.reparam")


def check_model_name(name: str, entry: experiment.Model) -> None:
  """Refuses an entry of `models` whose class or function is not there, or does not take its keywords."""
  if not entry.name:
    raise UserError(f"config key 'models.{name}.name' is missing; expected such as 'zoo.lenet:LeNet5'")
  model(entry)


def needs_teacher(objective: kd.Weighted) -> bool:
  """Returns whether an objective has a loss that compares with a teacher."""
  return any(term.loss.needs_teacher for term in objective.terms)


def batches(stage: Stage, examples: int) -> int:
  """Returns how many batches a stage has over a training split of so many examples."""
  return stage.epochs * datasets.steps_per_epoch(examples, stage.batch_size)


def steps(stage: Stage, examples: int) -> int:
  """Returns the steps of a stage, that is updates of `accumulate` batches; batches that fill none are dropped."""
  return batches(stage, examples) // stage.optimizer.accumulate


def reparam(name: str, stage: Stage, stacked: Stacked = dict) -> Reparam | None:
  """Returns a stage's weights as functions of what is trained, or None; arguments as of `transformation`."""
  group = stage.reparam
  if not group.get("name"):
    return None
  where = f"stages.{name}.reparam"
  return named(where, sparsity.reparam, _stacked(where, method(sparsity.reparam, group["name"]), group, stacked))


def transformation(
  name: str, stage: Stage, batches: int, stacked: Stacked = dict, seed: int | None = None
) -> optax.GradientTransformationExtraArgs:
  """Returns a stage's optimizer, wrapped by its sparsity method if it has one.

  Args:
    name: the stage's, for errors.
    stage: its config.
    batches: of the whole stage; schedules go over its updates, at least one.
    stacked: gives the axes along which leaves hold layers (`graph.stacked_axes`), for a method that wants to know.
    seed: of random masks, unless the config has one; None: that of the step.
  """
  updates = batches // stage.optimizer.accumulate
  if batches and not updates:
    raise UserError(
      f"config key 'stages.{name}.optimizer.accumulate' is {stage.optimizer.accumulate}, but the stage has {batches} "
      f"batches, so that it would never update; expected at most {batches}"
    )
  try:
    inner = _optimizer(stage.optimizer, max(updates, 1))
  except UserError as error:
    raise UserError(f"config group 'stages.{name}.optimizer': {error}") from error
  group = dict(stage.sparsity)
  if not group.get("name"):
    return inner
  where, chosen = f"stages.{name}.sparsity", group.pop("name")
  keywords = inspect.signature(sparse.method(chosen)).parameters
  if "schedule" in keywords and not updates:
    raise UserError(
      f"config key 'stages.{name}.epochs' is {stage.epochs}, but {chosen!r} prunes while the stage trains; "
      "expected 1 or more"
    )
  schedule = group.get("schedule")
  if isinstance(schedule, Mapping):
    in_steps = _in_steps(f"{where}.schedule", schedule, updates)
    # The last update that runs is number updates - 1: what ends with the stage ends there.
    in_steps |= {key: min(in_steps[key], updates - 1) for key in SHARES if key in in_steps}
    group["schedule"] = named(f"{where}.schedule", sparsity.schedules, in_steps)
  if "seed" in keywords:
    group.setdefault("seed", seed)
  group = _stacked(where, sparse.method(chosen), group, stacked)
  for key, package in sparse.PARTS.items():
    if isinstance(group.get(key), Mapping):
      group[key] = named(f"{where}.{key}", package, group[key])
  return call(where, sparse.method(chosen), group, inner)


def _stacked(where: str, fn: Callable[..., Any], group: Mapping[str, Any], stacked: Stacked) -> dict[str, Any]:
  """Returns a method's keywords, with the layers of leaves where it wants to know them and the config does not say."""
  if "stacked" not in inspect.signature(fn).parameters or "stacked" in group:
    return dict(group)
  try:
    found = stacked()
  except UserError as error:
    raise UserError(f"the model cannot be traced, so '{where}.stacked' has to name its layers: {error}") from error
  return {**group, "stacked": tuple((glob.escape(leaf), tuple(axes)) for leaf, axes in found.items())}


def _optimizer(given: experiment.Optimizer, updates: int) -> optax.GradientTransformationExtraArgs:
  rate = optim.schedule(
    given.schedule,
    given.learning_rate,
    updates,
    warmup=given.warmup_steps,
    milestones=[round(share * updates) for share in given.milestones],
    factor=given.decay,
  )
  rates = {"scale": given.scale_rate, "reparam": given.reparam_rate}
  return optim.optimizer(
    given.name,
    rate,
    momentum=given.momentum,
    delta=given.delta,
    nesterov=given.nesterov,
    weight_decay=given.weight_decay,
    clip_norm=given.clip_norm or None,
    rates={label: rate for label, rate in rates.items() if rate != 1.0} or None,
  )


def _in_steps(where: str, schedule: Mapping[str, Any], steps: int) -> dict[str, Any]:
  """A schedule whose "start", "end" and "at" are shares of the stage, with these in updates.

  Raises:
    UserError: one is no number from 0 to 1.
  """
  shares = [key for key in schedule if key in SHARES]
  for key in shares:
    ranges.check(f"config key '{where}.{key}', a share of the stage,", schedule[key], ranges.SHARE)
  return {key: round(value * steps) if key in shares else value for key, value in schedule.items()}


def examples(config: Experiment, stage: Stage, split: Split) -> Split:
  """The training examples of a stage: of some classes only, and with labels for some only (the others get -1).

  Raises:
    UserError: a class that the data does not have, more labels than examples, or nothing left.
  """
  given = stage.examples
  for key, numbers in (("only", given.only), ("without", given.without)):
    for number in numbers:
      if not 0 <= number < len(split.classes):
        raise UserError(f"'examples.{key}' names class {number}; expected 0 to {len(split.classes) - 1}")
  keep = np.isin(split.labels, given.only or range(len(split.classes))) & ~np.isin(split.labels, given.without)
  if not keep.all():
    split = split.take(np.flatnonzero(keep), split.name)
  if not len(split.labels):
    raise UserError("'examples' leaves no example to train on")
  return label_some(split, given.labelled, config.seed, given.unlabelled) if given.labelled else split


def policy(given: experiment.Quant) -> quant.Policy | None:
  """Returns a stage's quantization policy, or None where it trains in float."""
  return quant.policy(given.rules, given.ends or None) if given.rules else None


def dataset(config: Experiment) -> Dataset:
  """The experiment's data, cut to its limit."""
  given = config.data
  options = dict(given.kwargs)
  for key, instead in (("name", "data.name"), ("data_dir", "data.dir"), ("cache_dir", "LEANAX_CACHE_DIR")):
    if key in options:
      raise UserError(f"config key 'data.kwargs.{key}' is not a keyword of a data set; expected {instead} to say it")
  if given.validation:
    if "validation" in options:
      raise UserError("config keys 'data.validation' and 'data.kwargs.validation' are both set; expected one of them")
    options["validation"] = given.validation
  found = datasets.load(given.name, data_dir=given.dir or None, **options)
  if not given.limit:
    return found
  return Dataset(*(split.take(slice(given.limit), split.name) for split in found))


def inputs(config: Experiment, stage: Stage) -> Input:
  """Returns the description of a stage's batches."""
  changes = tree.values(stage.augment)
  changes |= {"views": changes["views"] or None, "seed": config.seed if changes["seed"] < 0 else changes["seed"]}
  return Input(
    batch_size=stage.batch_size,
    seed=config.seed,
    preprocess=Preprocess(**tree.values(config.preprocess)),
    augment=Augment(**changes),
    dtype=jnp.float32,
  )
