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
from leanax.engine import data as rooms
from leanax.engine.data import Augment, Dataset, Input, Preprocess, Split
from leanax.engine.data.splits import label_some
from leanax.engine.models import model as models
from leanax.engine.models.interface import Model
from leanax.engine.store import logit_codes
from leanax.engine.train import optim
from leanax.pipeline import schema, sparse, together

PRECISIONS = ("float32", "bfloat16")
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


def model(entry: Mapping[str, Any]) -> Model:
  """The model that an entry of `models` describes."""
  return models.load(entry["name"], dict(entry["kwargs"]))


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


def needs_teacher(objective: kd.Weighted) -> bool:
  """Whether an objective has a loss that compares with a teacher."""
  return any(term.loss.needs_teacher for term in objective.terms)


def batches(stage: Any, examples: int) -> int:
  """Returns how many batches a stage has over a training split of so many examples."""
  return stage.epochs * rooms.steps_per_epoch(examples, stage.batch_size)


def steps(stage: Any, examples: int) -> int:
  """Returns the steps of a stage, that is updates of `accumulate` batches; batches that fill none are dropped."""
  return batches(stage, examples) // stage.optimizer.accumulate


def transformation(
  stage: str, config: Any, batches: int, stacked: Callable[[], Mapping[str, Sequence[int]]] = dict
) -> optax.GradientTransformationExtraArgs:
  """A stage's optimizer, wrapped by its sparsity method if it has one.

  Args:
    stage: its name, for errors.
    config: the stage's groups.
    batches: of the whole stage; schedules go over its updates, at least one.
    stacked: gives the axes along which leaves hold layers (`graph.stacked_axes`), for a method that wants to know.
  """
  updates = batches // config.optimizer.accumulate
  if batches and not updates:
    raise UserError(
      f"config key 'stages.{stage}.optimizer.accumulate' is {config.optimizer.accumulate}, but the stage has {batches} "
      f"batches, so that it would never update; expected at most {batches}"
    )
  try:
    inner = _optimizer(config.optimizer, max(updates, 1))
  except UserError as error:
    raise UserError(f"config group 'stages.{stage}.optimizer': {error}") from error
  group = config.sparsity.to_dict()
  if not group.get("name"):
    return inner
  where, name = f"stages.{stage}.sparsity", group.pop("name")
  keywords = inspect.signature(sparse.method(name)).parameters
  if "schedule" in keywords and not updates:
    raise UserError(
      f"config key 'stages.{stage}.epochs' is {config.epochs}, but {name!r} prunes while the stage trains; "
      "expected 1 or more"
    )
  schedule = group.get("schedule")
  if isinstance(schedule, Mapping):
    in_steps = _in_steps(f"{where}.schedule", schedule, updates)
    # The last update that runs is number updates - 1: what ends with the stage ends there.
    in_steps |= {key: min(in_steps[key], updates - 1) for key in SHARES if key in in_steps}
    group["schedule"] = named(f"{where}.schedule", sparsity.schedules, in_steps)
  if "stacked" in keywords and "stacked" not in group:
    try:
      found = stacked()
    except UserError as error:
      raise UserError(f"the model cannot be traced, so '{where}.stacked' has to name its layers: {error}") from error
    group["stacked"] = tuple((glob.escape(name), tuple(axes)) for name, axes in found.items())
  for key, package in sparse.PARTS.items():
    if isinstance(group.get(key), Mapping):
      group[key] = named(f"{where}.{key}", package, group[key])
  return call(where, sparse.method(name), group, inner)


def _optimizer(given: Any, updates: int) -> optax.GradientTransformationExtraArgs:
  rate = optim.schedule(
    given.schedule,
    given.learning_rate,
    updates,
    warmup=given.warmup_steps,
    milestones=[round(share * updates) for share in given.milestones],
    factor=given.decay,
  )
  return optim.optimizer(
    given.name,
    rate,
    momentum=given.momentum,
    delta=given.delta,
    nesterov=given.nesterov,
    weight_decay=given.weight_decay,
    clip_norm=given.clip_norm or None,
    rates=None if given.scale_rate == 1.0 else {"scale": given.scale_rate},
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


def examples(config: Any, stage: Any, split: Split) -> Split:
  """The training examples of a stage: of some classes only, and with labels for some only (the others get -1).

  Raises:
    UserError: a class that the data does not have, more labels than examples, or nothing left.
  """
  given = stage.examples
  for key in ("only", "without"):
    for number in given[key]:
      if not 0 <= number < len(split.classes):
        raise UserError(f"'examples.{key}' names class {number}; expected 0 to {len(split.classes) - 1}")
  keep = np.isin(split.labels, given.only or range(len(split.classes))) & ~np.isin(split.labels, given.without)
  if not keep.all():
    split = split.take(np.flatnonzero(keep), split.name)
  if not len(split.labels):
    raise UserError("'examples' leaves no example to train on")
  return label_some(split, given.labelled, config.seed, given.unlabelled) if given.labelled else split


def policy(stage: str, config: Any) -> quant.Policy | None:
  """A stage's quantization policy, or None where it trains in float."""
  del stage
  return quant.policy(tuple(config.quant.rules), config.quant.ends or None) if config.quant.rules else None


def dataset(config: Any) -> Dataset:
  """The experiment's data, cut to its limit."""
  given = config.data
  options = given.kwargs.to_dict()
  for key, instead in (("name", "data.name"), ("data_dir", "data.dir"), ("cache_dir", "LEANAX_CACHE_DIR")):
    if key in options:
      raise UserError(f"config key 'data.kwargs.{key}' is not a keyword of a data set; expected {instead} to say it")
  if given.validation:
    if "validation" in options:
      raise UserError("config keys 'data.validation' and 'data.kwargs.validation' are both set; expected one of them")
    options["validation"] = given.validation
  found = rooms.load(given.name, data_dir=given.dir or None, **options)
  if not given.limit:
    return found
  return Dataset(*(split.take(slice(given.limit), split.name) for split in found))


def inputs(config: Any, stage: Any) -> Input:
  """How a stage's batches are made."""
  changes: dict[str, Any] = stage.augment.to_dict()
  changes |= {"views": changes["views"] or None, "seed": config.seed if changes["seed"] < 0 else changes["seed"]}
  return Input(
    batch_size=stage.batch_size,
    seed=config.seed,
    preprocess=Preprocess(**config.preprocess.to_dict()),
    augment=Augment(**changes),
    dtype=jnp.float32,
  )


def check(config: Any) -> None:
  """Builds everything that needs no data once, so that a mistake anywhere is found before the first stage trains.

  Raises:
    UserError: as the functions above.
  """
  for name, entry in config.models.items():
    if not entry.name:
      raise UserError(f"config key 'models.{name}.name' is missing; expected such as 'zoo.lenet:LeNet5'")
    model(entry)
  for name in config.run:
    stage = config.stages[name]
    minimised = objective(name, stage.objective.to_dict())
    _check_sparsity(f"stages.{name}.sparsity", stage.sparsity.to_dict())
    policy(name, stage)
    if stage.precision not in PRECISIONS:
      raise unknown(f"precision in 'stages.{name}.precision'", stage.precision, PRECISIONS)
    try:
      minimised.refuse_accumulation(stage.optimizer.accumulate)
    except UserError as error:
      raise UserError(f"config key 'stages.{name}.optimizer.accumulate': {error}") from error
    if stage.teacher == schema.ITSELF and not stage.optimizer.ema:
      raise UserError(f"config key 'stages.{name}.teacher' is 'itself', which needs 'stages.{name}.optimizer.ema'")
    taught = [term.loss.needs_teacher for term in minimised.terms]
    if stage.optimizer.name == "dot" and (all(taught) or not any(taught)):
      raise UserError(
        f"config key 'stages.{name}.optimizer.name' is 'dot', which tells a task's gradient from a teacher's; expected "
        "an objective with losses of both kinds, such as hard_labels and hinton"
      )
    if stage.peers > 1:
      _check_peers(name, config, any(taught))
    elif needs_teacher(minimised) and not stage.teacher:
      raise UserError(f"config key 'stages.{name}.teacher' is empty, but its objective compares with a teacher")
    elif stage.teacher and not needs_teacher(minimised):
      where = f"config key 'stages.{name}.teacher' is {stage.teacher!r}"
      raise UserError(f"{where}, but no loss of its objective compares with a teacher")
    together.check(name, config, minimised, objective)
    if stage.teacher_mode == "train" and config.parallel not in ("jit", "mesh"):
      raise UserError(
        f"config key 'stages.{name}.teacher_mode' is 'train': the teacher's statistics would be of each device's part "
        f"of the batch; expected 'parallel' to be 'jit' or 'mesh', got {config.parallel!r}"
      )


def _check_peers(name: str, config: Any, taught: bool) -> None:
  """Refuses peers that have another teacher, that have nothing to learn from each other, or that start alike."""
  stage = config.stages[name]
  for key, given, why in (
    ("teacher", stage.teacher, "its peers teach each other: expected none"),
    ("start", stage.start, "all peers would start alike: expected none"),
    ("cut.from", stage.cut["from"], "all peers would start alike: expected none"),
    ("model", config.models[stage.model].weights and stage.model, "all peers would start alike: expected no 'weights'"),
  ):
    if given:
      raise UserError(f"config key 'stages.{name}.{key}' is {given!r}, and {why}")
  if not taught:
    raise UserError(
      f"config key 'stages.{name}.peers' is {stage.peers}; expected an objective with a loss that compares with a "
      "teacher, such as hinton with temperature 1"
    )


def check_store(name: str, stage: Any, classes: int) -> None:
  """Refuses a form in which logits of so many classes cannot be stored.

  Args:
    name: the stage's, for errors.
    stage: its config.
    classes: logits an example.

  Raises:
    UserError: names the stage's keys.
  """
  try:
    logit_codes.fields(classes, stage.cache_form, stage.cache_top_k or None)
  except UserError as error:
    raise UserError(f"config keys 'stages.{name}.cache_form' and 'stages.{name}.cache_top_k': {error}") from error


def _check_sparsity(where: str, group: Mapping[str, Any]) -> None:
  """Refuses an unknown method; its keywords are checked where the stage's number of updates is known."""
  if group.get("name"):
    sparse.method(group["name"])
  elif set(group) - {"name"}:
    raise UserError(f"config key '{where}.name' is missing; expected a method of sparsity")
