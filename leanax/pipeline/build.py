"""From names in a config to functions, with every keyword checked before anything compiles."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kd
import quant
from leanax.core import imports, ranges
from leanax.core.errors import UserError, unknown
from leanax.core.methods import method
from leanax.engine import data as datasets
from leanax.engine import metrics as engine_metrics
from leanax.engine.data import Augment, Dataset, Input, Preprocess, Split
from leanax.engine.data.splits import class_counts, label_some
from leanax.engine.metrics import Metric
from leanax.engine.models import model as models
from leanax.engine.models.interface import Model
from leanax.pipeline.config import experiment, tree
from leanax.pipeline.config.experiment import Experiment, Stage

NAMED = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
SHARES = ("start", "end", "at")  # what a schedule gives as a share of the stage


def call(where: str, fn: Callable[..., Any], given: Mapping[str, Any], *positional: Any) -> Any:
  """Returns `fn(*positional, **given)`, once its signature has every keyword and nothing it needs is missing.

  Raises:
    UserError: a keyword that `fn` does not take (the nearest is named), or one that it needs; `where` names the config
      group.
  """
  check_keywords(where, fn, given, len(positional))
  try:
    return fn(*positional, **given)
  except (TypeError, ValueError, UserError) as error:
    raise UserError(f"config group {where!r}: {' '.join(str(error).split())}") from error


def check_keywords(where: str, fn: Callable[..., Any], given: Mapping[str, Any], positional: int = 0) -> None:
  """Refuses keywords that a function does not take, and missing ones; arguments as of `call`."""
  parameters = list(inspect.signature(fn).parameters.values())[positional:]
  names = {p.name: p for p in parameters if p.kind in NAMED}
  for key in given:
    if key not in names and not any(p.kind is p.VAR_KEYWORD for p in parameters):
      raise unknown("config key", f"{where}.{key}", [f"{where}.{name}" for name in names])
  for name, parameter in names.items():
    if parameter.default is parameter.empty and name not in given:
      raise UserError(f"config key '{where}.{name}' is missing")


def own(where: str, spec: str, given: Mapping[str, Any], kinds: tuple[type, ...], expected: str) -> Any:
  """Returns what a user's function gives, "package.module:name" called with keywords.

  Args:
    where: names the config key.
    spec: the import path.
    given: its keywords.
    kinds: the types of which the result has to be one.
    expected: what they are, in words.

  Raises:
    UserError: it is not there, is no function of these keywords, raises something (its line is named), or gives
      something else.
  """
  fn = imports.found(spec, f"config key {where!r}: {spec!r}")
  if not callable(fn):
    raise UserError(
      f"config key {where!r}: {spec!r} is a {type(fn).__name__}; expected a function that gives {expected}"
    )
  needed = [p.name for p in inspect.signature(fn).parameters.values() if p.default is p.empty and p.kind in NAMED]
  if missing := [name for name in needed if name not in given]:
    raise UserError(
      f"config key {where!r}: {spec!r} needs {', '.join(map(repr, missing))}, and there is no such key; expected a "
      f"function of keywords that gives {expected}"
    )
  check_keywords(where, fn, given)
  try:
    made = fn(**given)
  except Exception as error:  # the user's code may raise anything
    raise UserError(f"config key {where!r}: {spec!r} fails: {imports.failure(error)}") from error
  if not isinstance(made, kinds):
    raise UserError(f"config key {where!r}: {spec!r} gives a {type(made).__name__}; expected {expected}")
  return made


def metrics(config: Experiment) -> tuple[Metric, ...]:
  """Returns the metrics of an experiment; the first is what reports compare.

  Each is a name of `engine.metrics` or an import path, or a group {"name": one of these, its keywords}. One that reads
  one of several outputs has that output in its name.

  Raises:
    UserError: there is none, or one that is not there, or two of one name.
  """
  found: list[Metric] = []
  for index, given in enumerate(config.metrics):
    where = f"metrics[{index}]"
    group = dict(given) if isinstance(given, Mapping) else {"name": given}
    name, output = group.pop("name", ""), group.pop("output", "")
    if not isinstance(name, str) or not name:
      raise UserError(f"config key {where!r} is {given!r}; expected a metric's name, or {{'name': ..., its keywords}}")
    if not isinstance(output, str):
      raise UserError(f"config key '{where}.output' is {output!r}; expected the name of an output")
    if ":" in name:
      one = own(where, name, group, (Metric,), "an engine.metrics.Metric")
    else:
      one = call(where, method(engine_metrics, name), group)
    if output:
      title = f"{one.described()['title']} of {output}"
      one = dataclasses.replace(
        one, output=output, title=title, name=f"{re.sub(r'[^0-9a-zA-Z_]', '_', output)}_{one.name}"
      )
    if any(one.name == other.name for other in found):
      raise UserError(f"config key {where!r} is a second metric called {one.name!r}; expected each once")
    found.append(one)
  if not found:
    raise UserError("config key 'metrics' is empty; expected at least one, such as ('accuracy',)")
  return tuple(found)


def named(where: str, package: ModuleType, group: Mapping[str, Any], *positional: Any) -> Any:
  """Returns the method `group["name"]` of a package, called with the group's other keys."""
  if "name" not in group:
    raise UserError(f"config key '{where}.name' is missing; expected a method of {package.__name__}")
  return call(where, method(package, group["name"]), {k: v for k, v in group.items() if k != "name"}, *positional)


def model(entry: experiment.Model) -> Model:
  """Returns the model that an entry of `models` describes."""
  return models.load(entry.name, dict(entry.kwargs))


OF_TERM = ("loss", "weight", "mask", "ignore_label", "output")


def objective(
  stage: str, group: Mapping[str, Any], updates: int = 1, output: str = "", counts: Sequence[int] | None = None
) -> kd.Weighted:
  """Returns the weighted sum that a stage minimises: `{loss of kd: {"weight": share, "mask": which, its keywords}}`.

  "ignore_label" and "output" are those of `kd.Term`, too.

  Args:
    stage: its name, for errors.
    group: its terms. A term with a key "loss" may have any name, and that loss may be a user's own,
      "package.module:name". A weight or keyword may be a schedule of `kd.schedules`, whose "start", "end" and "at" are
      shares of the stage.
    updates: of the whole stage.
    output: what terms read that name no output, of a model with several.
    counts: the examples of each class, of which "class_weights": "balanced" is made; () where they do not matter yet.

  Raises:
    UserError: names the key.
  """
  terms = []
  for name, given in group.items():
    where = f"stages.{stage}.objective.{name}"
    if not isinstance(given, Mapping):
      raise UserError(f"config key {where!r} must be a group such as {{'weight': 1.0}}, got {given!r}")
    numbers = {key: _number(f"{where}.{key}", value, updates) for key, value in given.items()}
    if numbers.get("class_weights") == "balanced":
      numbers["class_weights"] = _balanced(f"{where}.class_weights", counts)
    keywords = {key: value for key, value in numbers.items() if key not in OF_TERM}
    chosen = given.get("loss", name)
    if isinstance(chosen, str) and ":" in chosen:
      loss = own(where, chosen, keywords, (kd.Loss,), "a loss, as kd.loss gives")
    else:
      loss = call(where, method(kd, chosen, folder="losses"), keywords)
    weight = numbers.get("weight", 1.0)
    ranges.check(f"config key '{where}.weight'", weight, ranges.WEIGHT, varies=True)
    weight = weight if callable(weight) else float(weight)
    more: dict[str, Any] = {"output": output} | {
      key: given[key] for key in ("mask", "ignore_label", "output") if key in given
    }
    terms.append(kd.Term(name, loss, weight, **more))
  if terms and not any(any(getattr(term.weight, "ends", [term.weight])) for term in terms):
    raise UserError(f"config group 'stages.{stage}.objective' has no weight but 0; expected one above 0")
  return kd.weighted(terms, output)


def _balanced(where: str, counts: Sequence[int] | None) -> tuple[float, ...]:
  """Returns N / (K n) for each of K classes with n of N examples; 0 for one without."""
  if counts is None:
    raise UserError(
      f"config key {where!r} is 'balanced', of a teacher that is trained beside or examples of other than one class; "
      "expected numbers"
    )
  present = [count for count in counts if count]
  return tuple(sum(present) / (len(present) * count) if count else 0.0 for count in counts)


def _number(where: str, value: Any, updates: int) -> Any:
  """Returns a value of a term, or the schedule that a group stands for; of a sequence, one for each element."""
  if isinstance(value, list | tuple):
    return type(value)(_number(f"{where}[{index}]", each, updates) for index, each in enumerate(value))
  if not isinstance(value, Mapping):
    return value
  given = in_steps(where, value, updates)
  if "start" in given and "end" in given:
    if not value["start"] < value["end"]:
      raise UserError(
        f"config key '{where}.start' is {value['start']} and '{where}.end' {value['end']}; expected it to end later"
      )
    given["end"] = max(given["end"], given["start"] + 1)  # in few updates both may round to one
  return named(where, kd.schedules, given)


def check_model_name(name: str, entry: experiment.Model) -> None:
  """Refuses an entry of `models` whose class or function is not there, or does not take its keywords."""
  if not entry.name:
    raise UserError(f"config key 'models.{name}.name' is missing; expected such as 'zoo.lenet:LeNet5'")
  model(entry)


def batches(stage: Stage, examples: int) -> int:
  """Returns how many batches a stage has over a training split of so many examples."""
  return stage.epochs * datasets.steps_per_epoch(examples, stage.batch_size)


def steps(stage: Stage, examples: int) -> int:
  """Returns the steps of a stage, that is updates of `accumulate` batches; batches that fill none are dropped."""
  return batches(stage, examples) // stage.optimizer.accumulate


def in_steps(where: str, schedule: Mapping[str, Any], steps: int) -> dict[str, Any]:
  """Returns a schedule whose "start", "end" and "at" are shares of the stage, with these in updates.

  Raises:
    UserError: one is no number from 0 to 1.
  """
  shares = [key for key in schedule if key in SHARES]
  for key in shares:
    ranges.check(f"config key '{where}.{key}', a share of the stage,", schedule[key], ranges.SHARE)
  return {key: round(value * steps) if key in shares else value for key, value in schedule.items()}


def examples(config: Experiment, stage: Stage, split: Split) -> Split:
  """Returns the training examples of a stage: of some classes only, and with labels for some only (the others get -1).

  Raises:
    UserError: a class that the data does not have, more labels than examples, or nothing left.
  """
  given = stage.examples
  for key, numbers in (("only", given.only), ("without", given.without)):
    for number in numbers:
      if not 0 <= number < len(split.classes):
        raise UserError(f"'examples.{key}' names class {number}; expected 0 to {len(split.classes) - 1}")
  if given.only or given.without:
    if isinstance(split.labels, Mapping) or split.labels.ndim > 1:
      raise UserError("'examples.only' and 'examples.without' choose examples by their class; expected one label each")
    keep = np.isin(split.labels, given.only or range(len(split.classes))) & ~np.isin(split.labels, given.without)
    split = split.take(np.flatnonzero(keep), split.name)
  if not len(split.ids):
    raise UserError("'examples' leaves no example to train on")
  split = label_some(split, given.labelled, config.seed, given.unlabelled) if given.labelled else split
  if not given.balanced:
    return split
  if isinstance(split.labels, Mapping) or split.labels.ndim > 1:
    raise UserError("'examples.balanced' draws classes equally often; expected one label for each example, or false")
  if (split.labels < 0).any():
    raise UserError(
      "'examples.balanced' is true and some examples have no labels; expected 'examples.unlabelled' false"
    )
  return split.take(np.argsort(split.labels, kind="stable"), split.name)


def policy(given: experiment.Quant) -> quant.Policy | None:
  """Returns a stage's quantization policy, or None where it trains in float."""
  return quant.policy(given.rules, given.ends or None) if given.rules else None


def dataset(config: Experiment) -> Dataset:
  """Returns the experiment's data, cut to its limit."""
  given = config.data
  options = dict(given.kwargs)
  for key, instead in (("name", "data.name"), ("data_dir", "data.dir"), ("cache_dir", "LEANAX_CACHE_DIR")):
    if key in options:
      raise UserError(f"config key 'data.kwargs.{key}' is not a keyword of a data set; expected {instead} to say it")
  if given.validation:
    if "validation" in options:
      raise UserError("config keys 'data.validation' and 'data.kwargs.validation' are both set; expected one of them")
    options["validation"] = given.validation
  for key, value, default in (("size", given.size, ()), ("resize", given.resize, "stretch")):
    if value != default:
      if key in options:
        raise UserError(f"config keys 'data.{key}' and 'data.kwargs.{key}' are both set; expected one of them")
      options[key] = value
  found = datasets.load(given.name, data_dir=given.dir or None, **options)
  if not given.limit:
    return found
  return Dataset(*(split.take(slice(given.limit), split.name) for split in found))


def inputs(config: Experiment, stage: Stage, split: Split | None = None) -> Input:
  """Returns the description of a stage's batches of `split`, its training examples; without them of pictures."""
  changes = tree.values(stage.augment)
  changes |= {"views": changes["views"] or None, "seed": config.seed if changes["seed"] < 0 else changes["seed"]}
  own = dict(changes.pop("function"))
  changes |= {"function": own.pop("name", ""), "keywords": tuple(sorted(own.items()))}
  return Input(
    batch_size=stage.batch_size,
    seed=config.seed,
    preprocess=Preprocess(**preprocess(config, split)),
    augment=Augment(**changes),
    dtype=jnp.float32,
    classes=tuple(filter(None, class_counts(split) or ())) if split is not None and stage.examples.balanced else (),
    ignore_label=_ignore_label(config, stage),
  )


def preprocess(config: Experiment, split: Split | None = None) -> dict[str, Any]:
  """Returns how inputs are prepared, as a model's file has it: {"scale", "mean", "std"}, and of images {"resize"}, too.

  The defaults are of pixels, and other inputs stay as they are then.

  Raises:
    UserError: it is given of whole numbers, such as tokens.
  """
  given = config.preprocess
  if split is None or split.has_pictures:
    way = experiment.resized(tree.values(config.data))
    return {**tree.values(given), **({"resize": way} if way else {})}
  if given == experiment.Preprocess():
    return tree.values(dataclasses.replace(given, scale=1.0))
  if split.images.dtype == np.int32:
    raise UserError("config group 'preprocess' is given, and the inputs are whole numbers; expected none of it")
  return tree.values(given)


def _ignore_label(config: Experiment, stage: Stage) -> int | None:
  """Returns the label that says that there is none: of a term of the objective, or else of a metric."""
  groups = (*stage.objective.values(), *config.metrics)
  return next((g["ignore_label"] for g in groups if isinstance(g, Mapping) and "ignore_label" in g), None)


def arrays(split: Split) -> dict[str, Any]:
  """Returns the shapes of a split's arrays, by the names that they have in a batch."""
  given = {"image": split.images, "label": split.labels, "id": split.ids}
  return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), given)
