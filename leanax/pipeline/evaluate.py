"""Models of a run, found and evaluated without training anything."""

import itertools
from collections.abc import Collection
from pathlib import Path

import numpy as np

from leanax import deploy
from leanax.core.errors import UserError, unknown
from leanax.engine.data import Split
from leanax.pipeline import build, workdir
from leanax.pipeline import trained as models
from leanax.pipeline.config import experiment
from leanax.pipeline.recipe import Recipe


def find_model(folder: str | Path, stage: str = "") -> tuple[str, Path]:
  """Returns (stage, file) of a finished stage's model; the last one if none is named.

  Raises:
    UserError: the stage does not exist or is not finished.
  """
  run = workdir.saved(folder).run
  paths = {name: Path(folder) / "models" / f"{name}.safetensors" for name in run}
  finished = [name for name in run if paths[name].is_file()]
  if not finished:
    raise UserError(f"{str(folder)!r} holds no finished stage")
  if stage and stage not in finished:
    raise unknown("finished stage", stage, finished)
  name = stage or finished[-1]
  return name, paths[name]


def model_code(folder: str | Path, given: Collection[str] = ()) -> set[str]:
  """Returns the code that files of a run may hold models of: those that a config of this user names.

  Args:
    folder: the run's directory; one that was copied from elsewhere names nothing.
    given: further import paths, given by the user.
  """
  return {*given, *(experiment.model_code(workdir.saved(folder)) if workdir.is_own(folder) else ())}


def load(folder: str | Path, path: Path, code: Collection[str] = ()) -> models.Trained:
  """Reads a model from a file, of a run or from elsewhere, of any code that `model_code` allows."""
  return models.load(path, model_code(folder, code))[0]


def _check(path: Path, recipe: Recipe, test: Split) -> None:
  """Refuses a model whose images or classes are not the data's: its accuracy would mean nothing.

  Raises:
    UserError: says what differs.
  """
  if recipe.image != test.images.shape[1:]:
    raise UserError(f"{path} reads images of {recipe.image}, and {test.name!r} has {test.images.shape[1:]}")
  if recipe.classes != test.classes:
    pairs = itertools.zip_longest(recipe.classes, test.classes)
    index, (there, here) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    raise UserError(
      f"{path} is of other classes than {test.name!r}: class {index} is {there!r} there and {here!r} here"
    )


def evaluate(folder: str | Path, model: str = "", code: Collection[str] = ()) -> list[tuple[str, float, int]]:
  """Returns [(name, accuracy, examples)] on the test split of a run's data, of a file or of all finished stages.

  Args:
    folder: the run's directory.
    model: a .safetensors file that a stage wrote, or an exported file from anywhere (.packed, `deploy.file_formats`).
    code: import paths of models that files may hold, beside those of `zoo` and of the user's own config.
  """
  config = workdir.saved(folder)
  test = build.dataset(config).test
  finished = [name for name in config.run if (Path(folder) / "models" / f"{name}.safetensors").is_file()]
  files = {model: Path(model)} if model else {name: find_model(folder, name)[1] for name in finished}
  if not files:
    raise UserError(f"{str(folder)!r} holds no finished stage")
  found = []
  for name, path in files.items():
    if path.suffix in deploy.file_formats():
      logits = deploy.open_file(path).run(test.images)
    else:
      trained = load(folder, path, code)
      _check(path, trained.recipe, test)
      logits = models.predict(trained, test.images)
    found.append((name, float(np.mean(logits.argmax(-1) == test.labels)), len(test.labels)))
  return found
