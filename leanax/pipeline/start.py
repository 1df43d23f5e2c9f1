"""The model before a stage's first step: fresh, pretrained, an earlier stage's, or cut out of one.

The same code runs on numbers and on shapes: `execute` is `now` or `jax.eval_shape`.
"""

import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from leanax.core import keys
from leanax.core.errors import UserError
from leanax.engine.data import Dataset, Split
from leanax.engine.store import pretrained
from leanax.graph.shapes import structs
from leanax.pipeline import build, cutting
from leanax.pipeline import trained as models
from leanax.pipeline.config.experiment import Experiment, Model, Stage, starts_from_file
from leanax.pipeline.recipe import Recipe
from leanax.pipeline.trained import Trained

Execute = Callable[..., Any]
INSTALLED = ("site-packages", "dist-packages", str(Path(os.__file__).parent), "<")


def now(fn: Callable[..., Any], *args: Any) -> Any:
  """Calls a function on numbers, where `jax.eval_shape` would trace it on shapes."""
  return fn(*args)


def recipe_of(model: str, config: Experiment, split: Split) -> Recipe:
  """Returns the recipe of a model of the experiment, before any stage has changed it."""
  entry = config.models[model]
  image, preprocess = split.images.shape[1:], build.preprocess(config)
  return Recipe(entry.name, dict(entry.kwargs), image, split.classes, preprocess, output=entry.output)


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
  if stage.cut.source:
    teacher = before[stage.cut.source]
    # Shapes do not tell which blocks have an effect; the number of kept blocks is the same.
    pick = cutting.picker(stage.cut, teacher, data.validation if execute is now else None)

    def cut(fresh: Any, given: Any) -> Any:
      return cutting.cut(stage.cut, recipe, fresh, teacher._replace(variables=given), pick)

    variables = execute(cut, variables, models.in_float(teacher).variables)
  return Trained(recipe, variables)


def check_model(name: str, config: Experiment, data: Dataset) -> None:
  """Traces a model of the experiment on shapes.

  Raises:
    UserError: it cannot be called with the data's images, its output is not a logit per class, or its weights are
      another model's.
  """
  entry, recipe = config.models[name], recipe_of(name, config, data.train)
  example = jax.ShapeDtypeStruct((1, *recipe.image), jnp.float32)
  parts = models.functions(recipe)
  try:
    variables = jax.eval_shape(lambda x: parts.model.init(jax.random.key(0), x), example)
    outputs = jax.eval_shape(parts.fn, variables, example)
  except UserError:
    raise
  except Exception as error:  # the user's code may raise anything
    raise UserError(
      f"model {name!r}, {entry.name!r} with {recipe.kwargs}, cannot be called with images of {recipe.image}: "
      f"{type(error).__name__}: {first_line(error)}{_where(error)}"
    ) from error
  expected = (1, len(recipe.classes))
  shape = getattr(outputs, "shape", None)
  if shape != expected:
    raise UserError(
      f"model {name!r}, {entry.name!r}, gives outputs of shape {shape} for one image; expected {expected}, a logit for "
      f"each class of {config.data.name!r}"
    )
  if entry.weights:
    loaded(entry, recipe, variables)


def loaded(entry: Model, recipe: Recipe, variables: Any) -> Any:
  """Returns variables with the pretrained weights of an entry of `models`; they may be shapes.

  Raises:
    UserError: the file cannot be read, or its weights are another model's.
  """
  call = models.functions(recipe).fn, jax.ShapeDtypeStruct((1, *recipe.image), jnp.float32)
  return pretrained.load(entry.weights, variables, entry.key_map, entry=entry.entry, keep=entry.new, call=call)


def first_line(error: Exception) -> str:
  """Returns the first line of an error's text."""
  return (str(error).strip() or "no reason given").splitlines()[0]


def _where(error: Exception) -> str:
  """Returns the innermost line of the user's code, or of ours."""
  frames = traceback.extract_tb(error.__traceback__)
  own = [frame for frame in frames if not any(part in frame.filename for part in INSTALLED)]
  return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
