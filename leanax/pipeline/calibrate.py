"""A float model becomes one with grids: batch norms folded, ranges from calibration batches, grids put into use."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

import quant
from leanax.engine import data as datasets
from leanax.engine.data import Input
from leanax.pipeline import trained as models
from leanax.pipeline.config.experiment import Quant
from leanax.pipeline.start import Execute, now
from leanax.pipeline.trained import Recipe, Trained

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
  if not given.rules:
    return trained
  # Norms are folded by numbers: shapes stand for unit ones.
  trained = models.fold(trained) if execute is now else models.fold_shapes(trained)
  recipe = trained.recipe._replace(rules=tuple(map(tuple, given.rules)), ends=given.ends)
  quantized = models.functions(recipe).quantized
  assert quantized is not None

  def grids(variables: Any) -> Any:
    qparams, quant_state = quantized.calibrate(variables, batches)
    return qparams, _on_pixels(quantized, recipe, (variables, qparams, quant_state), spec)

  return Trained(recipe, trained.variables, *execute(grids, trained.variables))


def batches(arrays: Mapping[str, jax.Array], spec: Input, count: int) -> Iterator[jax.Array]:
  """Yields the images of calibration batches: those of the first steps, without augmentation."""
  plain = dataclasses.replace(spec, augment=datasets.Augment())
  batch = jax.jit(lambda arrays, step: datasets.train_batch_at(arrays, step, plain)["image"])
  for step in range(count):
    yield batch(arrays, step)


def one_batch(recipe: Recipe) -> list[np.ndarray]:
  """Returns calibration batches that stand for all others where shapes alone matter."""
  return [np.zeros((1, *recipe.image), np.float32)]


def _on_pixels(quantized: quant.Quantized, recipe: Recipe, trees: tuple[Any, Any, Any], spec: Input) -> Any:
  """Returns the quantizers' state, a grid of integers of the input set to that of its pixels (`quant.pixel_grid`)."""
  variables, qparams, quant_state = trees
  if INPUT not in quant_state:
    return quant_state
  seen = quantized.grids(qparams, quant_state, variables, models.example(recipe))[INPUT]
  if seen.format != "integer":
    return quant_state
  levels = (np.arange(256.0)[:, None] * spec.preprocess.scale - spec.preprocess.mean) / np.array(spec.preprocess.std)
  grid = quant.pixel_grid(levels, seen.bits)
  return {**quant_state, INPUT: {**quant_state[INPUT], "used": {"scale": grid.scale, "zero_point": grid.zero_point}}}
