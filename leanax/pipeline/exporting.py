"""The export of stages: known on shapes before anything trains, by the code that then exports numbers.

A stage's `export` names the formats of its files, and its `export_failure` what happens where there can be none.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from leanax import deploy, graph
from leanax.core.errors import UserError
from leanax.graph.shapes import structs
from leanax.pipeline import trained as models
from leanax.pipeline.config.experiment import Experiment, Stage
from leanax.pipeline.recipe import Recipe
from leanax.pipeline.trained import Trained


class Prepared(NamedTuple):
  """The export of a stage to one format, prepared on shapes.

  Attributes:
    suffix: of the format.
    network: its layers, with numbers that stand for weights, or the model that the format holds whole; None where it
      cannot be exported.
    failure: one sentence that says why; "" where it can.
    held: the constants of its layers in the file, by the layers' names; none of a model whole.
  """

  suffix: str
  network: deploy.Network | deploy.Model | None
  failure: str = ""
  held: Mapping[str, deploy.Held] = {}


def given(trained: Trained, takes: type, numbers: bool = True) -> deploy.Network | deploy.Model:
  """Returns what a format takes of a model (`Format.takes`); `numbers` as of `network`.

  Raises:
    UserError: what cannot be lifted.
  """
  return whole(trained) if takes is deploy.Model else network(trained, numbers)


def network(trained: Trained, numbers: bool = True) -> deploy.Network:
  """Returns the model as a layer network: int8 where its integers were simulated, float otherwise.

  Args:
    trained: the model.
    numbers: False where its variables are shapes: numbers stand for weights, grids have the scale 1, and no
      layer is proven.

  Raises:
    UserError: what cannot be lifted (`deploy.lift`).
  """
  folded = models.fold(trained) if numbers else models.fold_shapes(trained)
  plain, example = models.in_float(folded), models.example_shape(folded.recipe)
  grids = models.grids(folded) if numbers else _unit_grids(folded)
  fn = models.functions(plain.recipe).fn
  preprocessing = preprocessing_of(folded.recipe)
  return deploy.lift(fn, plain.variables, example, grids, preprocessing, prove=numbers)


def description(recipe: Recipe, config: Experiment, stage: str, command: str = "") -> deploy.Description:
  """Returns what a file says of a stage's model: its classes, its licence, what it is and how it was made.

  Args:
    recipe: of the model.
    config: the run's, with its words on the network (`about`, `licence`).
    stage: the stage's name.
    command: how the run was started; "" where that is not known.
  """
  known = {"about": config.about, "stage": stage, "experiment": config.name}
  if stage not in config.shared:  # that one is of the first seed, which this run does not know
    known["seed"] = str(config.seed)
  known |= {"command": command, "model": recipe.name}
  if recipe.preprocess.get("resize"):
    known["resize"] = recipe.preprocess["resize"]
  if recipe.is_quantized:
    known["quantization"] = "; ".join(f"{glob} {setting}" for glob, setting in recipe.edits[-1]["rules"])
  with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # run from its own directory
    known["leanax"] = importlib.metadata.version("leanax")
  return deploy.Description(tuple(recipe.classes), config.licence, {key: text for key, text in known.items() if text})


def whole(trained: Trained) -> deploy.Model:
  """Returns the model as its own function, integers simulated; its variables may be shapes."""
  parts, example = models.functions(trained.recipe), models.example_shape(trained.recipe)
  net = parts.net if parts.edited else graph.net(parts.fn, trained.variables, example)
  preprocessing = preprocessing_of(trained.recipe)
  return deploy.Model(dataclasses.replace(net, variables=trained.variables), preprocessing)


def preprocessing_of(recipe: Recipe) -> deploy.Preprocessing | None:
  """Returns the step from pixels to a model's input; None of a model whose inputs are no pixels."""
  return deploy.Preprocessing(**recipe.preprocess) if recipe.source == "uint8" else None


def _unit_grids(folded: Trained) -> Any:
  """Returns the grids of a model whose variables are shapes, of zero point 0; None in float.

  A scale is 1, and several are `distinct`: equal ones would hide what has a scale for each group of inputs.
  """

  def unit(grid: Any) -> Any:
    numbers: dict[str, Any] = {
      "scale": models.distinct(grid.scale),
      "zero_point": np.zeros(grid.zero_point.shape, np.int32),
    }
    return dataclasses.replace(grid, **numbers)

  made = jax.eval_shape(lambda variables: models.grids(folded._replace(variables=variables)), folded.variables)
  return None if made is None else {name: unit(grid) for name, grid in made.items()}


def formats(stage: Stage) -> dict[str, deploy.Format]:
  """Returns the formats of a stage's files by their suffixes, in the order of the config."""
  found = [deploy.file_format(name) for name in stage.export]
  return {one.suffix: one for one in found}


def check_keys(config: Experiment) -> None:
  """Refuses formats that there are not, and those named twice.

  Raises:
    UserError: names the key.
  """
  for name in config.run:
    stage = config.stages[name]
    try:
      found = formats(stage)
    except UserError as error:
      raise UserError(f"config key 'stages.{name}.export': {error}") from None
    if len(found) < len(stage.export):
      raise UserError(f"config key 'stages.{name}.export' is {stage.export!r}; expected each format once")


def prepare(config: Experiment, leaves: Mapping[str, Trained]) -> dict[str, list[Prepared]]:
  """Returns the export of every stage that is run, prepared on the shapes that it leaves.

  Nothing is compiled but the operations that fold batch norms.

  Raises:
    UserError: an extra that a format needs is missing.
  """
  wanted = {name: formats(config.stages[name]) for name in config.run}
  for one in {suffix: one for each in wanted.values() for suffix, one in each.items()}.values():
    one.check(_least() if one.takes is deploy.Network else _least_model())
  lifted: dict[tuple[str, type], Any] = {}  # stages that leave the same network are lifted once
  found = {}
  for name, each in wanted.items():
    left = leaves[name]._replace(variables=structs(leaves[name].variables))
    key = json.dumps([left.recipe._asdict(), str(jax.tree.flatten(left.variables))], sort_keys=True)
    for takes in {one.takes for one in each.values()} - {kind for whose, kind in lifted if whose == key}:
      lifted[key, takes] = _tried(lambda left=left, takes=takes: given(left, takes, numbers=False))
    found[name] = [_prepared(suffix, one, lifted[key, one.takes]) for suffix, one in each.items()]
  return found


def _prepared(suffix: str, one: deploy.Format, lifted: deploy.Network | deploy.Model | str) -> Prepared:
  """Returns what a format says of a model; of one that could not be lifted it is given the text that says why."""
  if isinstance(lifted, str):
    return Prepared(suffix, None, lifted)
  failure = _tried(lambda: one.check(lifted))
  if failure:
    return Prepared(suffix, None, failure)
  return Prepared(suffix, lifted, held=one.held(lifted) if isinstance(lifted, deploy.Network) else {})


def _tried(call: Any) -> Any:
  """Returns what a call returns, or its refusal as a text."""
  try:
    return call()
  except UserError as error:
    return str(error)
  except Exception as error:  # whatever a user's function does to lifting: there is no file, and a stage may train
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _least() -> deploy.Network:
  """Returns a network that every format holds: one that is refused needs an extra."""
  return deploy.lift(
    lambda kernel, x: x @ kernel, np.ones((1, 1), np.float32), np.ones((1, 1), np.float32), prove=False
  )


def _least_model() -> deploy.Model:
  """Returns the same as its own function."""
  one = jax.ShapeDtypeStruct((1, 1), np.float32)
  return deploy.Model(graph.net(lambda kernel, x: x @ kernel, one, one))


def check(config: Experiment, leaves: Mapping[str, Trained]) -> None:
  """Refuses stages that cannot be exported, unless their failure is to be reported.

  Args:
    config: the experiment.
    leaves: what its stages leave, as shapes.

  Raises:
    UserError: the stages, what is in the way (operator, layer, line of the user's code), and how to train without.
  """
  failed: dict[tuple[str, str], list[str]] = {}
  for name, each in prepare(config, leaves).items():
    for one in each:
      if one.failure and config.stages[name].export_failure == "refuse":
        failed.setdefault((one.suffix, one.failure), []).append(name)
  for (suffix, failure), names in failed.items():
    raise UserError(f"{refusal(names, suffix, failure)}; {advice(names)}")


def refusal(names: list[str], suffix: str, failure: str) -> str:
  """Returns the sentence for stages that have no file of a format."""
  stages = f"stage {names[0]!r}" if len(names) == 1 else f"stages {', '.join(map(repr, names))}"
  return f"{stages} cannot be exported as {suffix.removeprefix('.')}: {failure}"


def advice(names: list[str]) -> str:
  """Returns what a user can set to train all the same."""
  each = " and ".join(f"'stages.{name}.export'" for name in names)
  other = " and ".join(f"'stages.{name}.export_failure'" for name in names)
  return f"set {each} to () to train without a file, or {other} to 'report' for a row of the report that says why"
