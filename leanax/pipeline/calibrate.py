"""A float model becomes one with grids: batch norms folded, ranges from calibration batches, grids put into use."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

import quant
from leanax import graph
from leanax.engine import data as datasets
from leanax.engine.data import Input
from leanax.pipeline import build
from leanax.pipeline import trained as models
from leanax.pipeline.config.experiment import Quant
from leanax.pipeline.recipe import Recipe
from leanax.pipeline.start import Execute, now
from leanax.pipeline.trained import Trained

INPUT = "input"  # the network's input among the quantizers


def calibrated(given: Quant, trained: Trained, batches: Iterable[Any], spec: Input, execute: Execute = now) -> Trained:
  """Returns the model with grids, its batch norms folded; itself where the stage trains in float.

  Args:
    given: the stage's `quant`.
    trained: the float model; its variables are shapes unless `execute` is `now`.
    batches: preprocessed images; at least one batch.
    spec: how batches are made.
    execute: as of `start.model_of`.
  """
  policy = build.policy(given)
  if policy is None:
    return trained
  # Norms are folded by numbers: shapes stand for distinct ones, as trained ones are.
  trained = models.fold(trained) if execute is now else models.fold_shapes(trained)
  recipe, fn = trained.recipe, models.functions(trained.recipe).fn

  def rounded(variables: Any) -> Any:
    net = graph.net(fn, variables, models.example(recipe))
    made = quant.post_training(net, batches, policy)
    return (_on_pixels(made, spec) if recipe.source == "uint8" else made).variables

  edits = (*recipe.edits, quant.edit.data(policy))
  return Trained(recipe._replace(edits=edits), execute(rounded, trained.variables))


def batches(arrays: Mapping[str, jax.Array], spec: Input, count: int) -> Iterator[jax.Array]:
  """Yields the images of calibration batches: those of the first steps, without augmentation."""
  plain = dataclasses.replace(spec, augment=datasets.Augment())
  batch = jax.jit(lambda arrays, step: datasets.train_batch_at(arrays, step, plain)["image"])
  for step in range(count):
    yield batch(arrays, step)


def one_batch(recipe: Recipe) -> list[np.ndarray]:
  """Returns calibration batches that stand for all others where shapes alone matter."""
  return [np.zeros((1, *recipe.image), recipe.dtype)]


def _on_pixels(net: graph.Net, spec: Input) -> graph.Net:
  """Returns the net with a grid of integers of its input set to that of its pixels (`quant.pixel_grid`)."""
  state = net.variables["quant_state"]
  if INPUT not in state:
    return net
  seen = quant.grids(net)[INPUT]
  if seen.format != "integer":
    return net
  levels = (np.arange(256.0)[:, None] * spec.preprocess.scale - spec.preprocess.mean) / np.array(spec.preprocess.std)
  grid = quant.pixel_grid(levels, seen.bits)
  state = {**state, INPUT: {**state[INPUT], "used": {"scale": grid.scale, "zero_point": grid.zero_point}}}
  return dataclasses.replace(net, variables={**net.variables, "quant_state": state})
