"""The model before a stage's first step: fresh, pretrained, an earlier stage's, or cut out of one.

The same code runs on numbers and on shapes: `execute` is `now` or `jax.eval_shape`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from leanax.core import imports, keys
from leanax.core.errors import UserError
from leanax.engine.data import Dataset, Split
from leanax.engine.store import pretrained
from leanax.graph.shapes import structs
from leanax.pipeline import build, cutting, environment
from leanax.pipeline import trained as models
from leanax.pipeline.config.experiment import Experiment, Model, Stage, starts_from_file
from leanax.pipeline.recipe import ALL, Recipe
from leanax.pipeline.trained import Trained

Execute = Callable[..., Any]


def now(fn: Callable[..., Any], *args: Any) -> Any:
  """Calls a function on numbers, where `jax.eval_shape` would trace it on shapes."""
  return fn(*args)


def recipe_of(model: str, config: Experiment, split: Split) -> Recipe:
  """Returns the recipe of a model of the experiment, before any stage has changed it."""
  entry, image, output = config.models[model], split.images.shape[1:], config.models[model].output
  if isinstance(split.labels, Mapping):
    if output:
      raise UserError(
        f"config key 'models.{model}.output' is {output!r}, and {split.name!r} has labels of several outputs, "
        f"{', '.join(map(repr, split.labels))}; expected no 'output', as all are kept"
      )
    output = ALL
  preprocess, source = build.preprocess(config, split), split.images.dtype.name
  return Recipe(entry.name, dict(entry.kwargs), image, split.classes, preprocess, output=output, source=source)


def model_of(
  stage: Stage,
  config: Experiment,
  data: Dataset,
  before: Mapping[str, Trained],
  execute: Execute = now,
  peer: int = 0,
) -> Trained:
  """Returns the model before the first step, in float.

  Args:
    stage: the stage's config.
    config: the experiment.
    data: its data.
    before: what earlier stages left, on numbers or shapes as `execute` has it.
    execute: `now`, or `jax.eval_shape`, after which the variables are shapes.
    peer: the number of a peer (`engine.train.mutual`); each has other random numbers.
  """
  if stage.start and not starts_from_file(stage):
    return models.in_float(before[stage.start])
  entry, recipe = config.models[stage.model], recipe_of(stage.model, config, data.train)
  init = models.functions(recipe).model.init

  def fresh() -> Any:
    return jax.jit(init)(keys.step_key(config.seed, peer, f"init {stage.model}"), models.example(recipe))

  variables = execute(fresh)
  if stage.start:
    variables = loaded(Model(weights=stage.start), recipe, variables)
  elif entry.weights:
    variables = loaded(entry, recipe, variables)
  variables = variables if execute is now else structs(variables)
  if (
    stage.cut.source
    and stage.cut.keep == "effect"
    and (isinstance(labels := data.validation.labels, Mapping) or labels.ndim > 1)
  ):
    raise UserError(
      "'cut.keep' is 'effect', the rise of the cross-entropy of classes; expected examples of one class each"
    )
  if stage.cut.source:
    teacher = before[stage.cut.source]
    # Shapes do not tell which blocks have an effect; the number of kept blocks is the same.
    pick = cutting.picker(stage.cut, teacher, data.validation if execute is now else None)

    def cut(fresh: Any, given: Any) -> Any:
      return cutting.cut(stage.cut, recipe, fresh, teacher._replace(variables=given), pick)

    variables = execute(cut, variables, models.in_float(teacher).variables)
  return Trained(recipe, variables)


def check_model(name: str, config: Experiment, data: Dataset) -> Any:
  """Traces a model of the experiment on shapes, and returns those of its outputs for one example.

  Raises:
    UserError: it cannot be called with the data's images, its output cannot be compared with the labels, or its
      weights are another model's.
  """
  entry, recipe = config.models[name], recipe_of(name, config, data.train)
  example = models.example_shape(recipe)
  parts = models.functions(recipe)
  try:
    variables = jax.eval_shape(lambda x: parts.model.init(jax.random.key(0), x), example)
    outputs = jax.eval_shape(parts.fn, variables, example)
  except UserError:
    raise
  except Exception as error:  # the user's code may raise anything
    raise UserError(
      f"model {name!r}, {entry.name!r} with {recipe.kwargs}, cannot be called with images of {recipe.image}: "
      f"{imports.failure(error)}"
    ) from error
  where = f"model {name!r}, {entry.name!r},"
  environment.check_memory(f"model {name!r}, {entry.name!r} with {recipe.kwargs}, has", "weights", variables)
  _check_outputs(where, outputs, data.train, config.data.name)
  for split in (data.train, data.validation, data.test):
    _check_classes(where, outputs, split, _ignored(config))
  if entry.weights:
    loaded(entry, recipe, variables)
  return outputs


def loaded(entry: Model, recipe: Recipe, variables: Any) -> Any:
  """Returns variables with the pretrained weights of an entry of `models`; they may be shapes.

  Raises:
    UserError: the file cannot be read, or its weights are another model's.
  """
  call = models.functions(recipe).fn, models.example_shape(recipe)
  try:
    return pretrained.load(entry.weights, variables, entry.key_map, entry=entry.entry, keep=entry.new, call=call)
  except OSError as error:
    raise UserError(f"weights {entry.weights!r} cannot be read: {error.strerror}") from error


def _check_outputs(where: str, outputs: Any, split: Split, name: str) -> None:
  """Refuses outputs that labels cannot be compared with.

  Args:
    where: names the model.
    outputs: shapes for one example; a dict of them where labels are a mapping.
    split: of the data.
    name: of the data.
  """
  if not isinstance(split.labels, Mapping):
    return _check_output(where, outputs, split.labels, split.classes, name)
  for key, labels in split.labels.items():
    if key not in outputs:
      raise UserError(
        f"{where} has the outputs {', '.join(map(repr, outputs))}, and {name!r} has labels of {key!r}; expected an "
        "output of that name"
      )
    _check_output(f"{where} in its output {key!r}", outputs[key], labels, (), name)


def _check_classes(where: str, outputs: Any, split: Split, ignored: set[int]) -> None:
  """Refuses labels of one of several outputs that are beyond its classes, which have no names to be counted by.

  Args:
    where: names the model.
    outputs: as of `_check_outputs`.
    split: of the data.
    ignored: labels that are no classes.
  """
  for key, labels in split.labels.items() if isinstance(split.labels, Mapping) else ():
    shape = outputs[key].shape
    if labels.dtype.kind == "f" or (shape == (1, *labels.shape[1:]) and labels.ndim > 1):
      continue  # numbers, or yes and no
    beyond = np.argwhere((labels >= shape[-1]) & ~np.isin(labels, [*ignored]))
    if beyond.size:
      first = tuple(int(place) for place in beyond[0])
      raise UserError(
        f"{where} gives {shape[-1]} logits in its output {key!r}, and the example with id {split.ids[first[0]]} of "
        f"{split.name!r} has the label {labels[first]}; expected labels from 0 to {shape[-1] - 1}, or below 0 for none"
      )


def _ignored(config: Experiment) -> set[int]:
  """Returns the labels that a term or a metric of an experiment leaves out."""
  terms = [term for stage in config.stages.values() for term in stage.objective.values()]
  given = [one.get("ignore_label") for one in (*terms, *config.metrics) if isinstance(one, Mapping)]
  return {label for label in given if isinstance(label, int)}


def _check_output(where: str, output: Any, labels: Any, classes: Sequence[str], name: str) -> None:
  """Refuses an output that is neither logits of classes, nor of the labels' own shape."""
  shape, own = getattr(output, "shape", None), (1, *labels.shape[1:])
  if shape == own and labels.ndim > 1:
    return
  if labels.dtype.kind == "f":
    raise UserError(
      f"{where} gives outputs of shape {shape} for one example; expected {own}, a number for each label of {name!r}"
    )
  count = len(classes) or "classes"
  if shape is None or shape[:-1] != own or (classes and shape[-1] != count):
    many = "each class of every position" if labels.ndim > 1 else "each class"
    expected = str((*own, count)).replace("'", "")
    what = "image" if labels.ndim == 1 else "example"
    raise UserError(
      f"{where} gives outputs of shape {shape} for one {what}; expected {expected}, a logit for {many} of {name!r}"
    )
