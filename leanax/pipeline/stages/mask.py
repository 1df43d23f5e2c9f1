"""A stage that trains nothing: an earlier stage's model is pruned at once, by `sparsity.mask`.

A later stage with the sparsity "hold" trains on with its zeros.
"""

import glob
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

import sparsity
from leanax.core.errors import UserError
from leanax.engine.data import Dataset
from leanax.pipeline import build, optimizers, start, untrained
from leanax.pipeline import trained as models
from leanax.pipeline.config.experiment import Experiment, Stage
from leanax.pipeline.job import Context, Job
from leanax.pipeline.trained import Trained

READ = ("kind", "model", "start", "sparsity")  # the keys of a stage that it reads


def check(name: str, config: Experiment) -> None:
  """Refuses what a stage's config alone shows: keys that only training reads, nothing to start from, another method."""
  untrained.check(name, config, READ)
  if (given := config.stages[name].sparsity.get("name")) not in ("", None):
    raise UserError(
      f"config key 'stages.{name}.sparsity.name' is {given!r}, but a stage of kind 'mask' prunes at once; expected the "
      "keywords of sparsity.mask alone, such as {'density': 0.5}"
    )


def prepare(name: str, config: Experiment, data: Dataset, before: Mapping[str, Trained]) -> Job:
  """Prepares a stage that leaves the model with zeros, by the keywords of `sparsity.mask` in its group `sparsity`.

  Its score, its pattern are groups with a name. A criterion that reads gradients is refused, as there are none.

  Args:
    name: the stage's.
    config: the experiment.
    data: its data, for the shape of images.
    before: what earlier stages leave; of their trees shapes are enough.

  Raises:
    UserError: keywords that `sparsity.mask` does not take, or that do not fit the model.
  """
  stage = config.stages[name]
  leaves = _masked(name, stage, start.model_of(stage, config, data, before, jax.eval_shape), jax.eval_shape)

  def run(contexts: Sequence[Context], done: Sequence[Mapping[str, Trained]], over: str) -> list[Trained]:
    del over  # nothing is trained that could be trained together
    each = zip(contexts, done, strict=True)
    return [_masked(name, stage, start.model_of(stage, one.config, one.data, earlier)) for one, earlier in each]

  return Job(run, leaves, steps=0)


def _masked(name: str, stage: Stage, model: Trained, execute: Callable[..., Any] = start.now) -> Trained:
  """Returns the model with zeros; its variables are shapes unless `execute` is `now`."""
  where = f"stages.{name}.sparsity"
  given = {key: value for key, value in stage.sparsity.items() if key != "name"}
  for key in ("score", "pattern"):
    if isinstance(given.get(key), Mapping):
      given[key] = build.named(f"{where}.{key}", optimizers.PARTS[key], given[key])
  if "stacked" not in given:
    axes = models.stacked_axes(model.recipe, model.variables)
    given["stacked"] = tuple((glob.escape(leaf), tuple(found)) for leaf, found in axes.items())
  prune = jax.jit(lambda variables: build.call(where, sparsity.mask, given, variables))
  return model._replace(variables=execute(prune, model.variables))
