"""Models of a run, found and evaluated without training anything."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leanax import deploy
from leanax.core import imports
from leanax.core.errors import UserError, unknown
from leanax.engine import data as datasets
from leanax.engine.data import Split
from leanax.engine.metrics import measured
from leanax.pipeline import build, workdir
from leanax.pipeline import trained as models
from leanax.pipeline.config import experiment, tree
from leanax.pipeline.config.experiment import Data, Experiment
from leanax.pipeline.recipe import Recipe

MODELS = (".safetensors", models.PACKED)  # suffixes of files that hold a model and no program


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
  if recipe.source != test.images.dtype.name:
    raise UserError(f"{path} reads {recipe.source}, and the inputs of {test.name!r} are {test.images.dtype.name}")
  if recipe.image != test.images.shape[1:]:
    raise UserError(f"{path} reads images of {recipe.image}, and {test.name!r} has {test.images.shape[1:]}")
  _check_classes(path, recipe.classes, test)


def _check_classes(path: Path, classes: Sequence[str], test: Split) -> None:
  if tuple(classes) != tuple(test.classes):
    pairs = itertools.zip_longest(classes, test.classes)
    index, (there, here) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    raise UserError(
      f"{path} is of other classes than {test.name!r}: class {index} is {there!r} there and {here!r} here"
    )


class Evaluated(NamedTuple):
  """What `evaluate_all` found.

  Attributes:
    metrics: plain data (`Metric.described`), the first is what reports compare.
    values: [(name of a stage or file, {metric: value})].
    examples: of the test split.
  """

  metrics: list[dict[str, str]]
  values: list[tuple[str, dict[str, float]]]
  examples: int


def evaluate(
  folder: str | Path = "", model: str = "", code: Collection[str] = (), data: str = ""
) -> list[tuple[str, float, int]]:
  """Returns [(name, value, examples)] of the first metric, which is accuracy by default; see `evaluate_all`."""
  found = evaluate_all(folder, model, code, data)
  return [(name, values[found.metrics[0]["name"]], found.examples) for name, values in found.values]


def evaluate_all(folder: str | Path = "", model: str = "", code: Collection[str] = (), data: str = "") -> Evaluated:
  """Returns the metrics on a test split, of a file or of all finished stages of a run.

  Args:
    folder: the run's directory; "" for a file of none, whose metric is accuracy.
    model: a .safetensors file that a stage wrote, or an exported file from anywhere (.packed, `deploy.file_formats`).
    code: import paths of models that files may hold, and of metrics and data that a run may name, beside those of `zoo`
      and of the user's own config.
    data: the name of a data set; by default the run's.

  Raises:
    UserError: there is nothing to evaluate or to evaluate it on, or a file whose input, classes or preprocessing are
      not those of the data, or are not known.
  """
  if not folder and not (model and data):
    missing = "--data, or the --workdir of a run" if model else "--workdir, or --model and --data"
    raise UserError(f"{missing} is missing; expected what names the {'data' if model else 'files and the data'}")
  config = workdir.saved(folder) if folder else Experiment(data=Data(name=data))
  if folder and not workdir.is_own(folder):
    _permit(config, code, str(folder), bool(data))
  metrics, way = build.metrics(config), experiment.resized(tree.values(config.data)) if folder else ""
  if model:
    files = {model: Path(model)}
  else:
    finished = [name for name in config.run if (Path(folder) / "models" / f"{name}.safetensors").is_file()]
    files = {name: find_model(folder, name)[1] for name in finished}
  if not files:
    raise UserError(f"{str(folder)!r} holds no finished stage")
  test = None if data else build.dataset(config).test
  found, examples = [], 0
  for name, path in files.items():
    if path.suffix in deploy.file_formats():
      file = deploy.open_file(path)
      test = test or _given(data, file.input.shape[1:], file.preprocessing.resize if file.preprocessing else way)
      outputs = of_file(file, test, deploy.Preprocessing(**build.preprocess(config, test)) if folder else None)
      if file.description and file.description.classes:
        _check_classes(path, file.description.classes, test)
    elif path.is_file() and path.suffix not in MODELS:
      known = ", ".join(sorted([*deploy.file_formats(), *MODELS]))
      raise UserError(f"{name!r} has the suffix of no model's file; expected one of {known}")
    else:
      trained = models.load(path, model_code(folder, code) if folder else set(code))[0]
      test = test or _given(data, trained.recipe.image, trained.recipe.preprocess.get("resize", ""))
      _check(path, trained.recipe, test)
      outputs = models.predict(trained, test.images)
    found.append((name, {metric.name: measured(metric, outputs, test.labels) for metric in metrics}))
    examples = len(test.ids)
  return Evaluated([metric.described() for metric in metrics], found, examples)


def _permit(config: Experiment, code: Collection[str], folder: str, other_data: bool) -> None:
  """Refuses code that a run from elsewhere names for its metrics and data, unless the user names it too."""
  given = [one.get("name", "") if isinstance(one, Mapping) else one for one in config.metrics]
  named = [name for name in given if imports.is_path(name)]
  named += [config.data.name] if not other_data and datasets.is_own(config.data.name) else []
  for name in named:
    if name not in code:
      raise UserError(
        f"{folder!r} was made elsewhere and names {name!r}, code that is not run unless you name it: pass "
        f"--model_code={name}"
      )


def _given(data: str, shape: Sequence[int | None], resize: str) -> Split:
  """Returns the test split of a data set by name, its images prepared as a model's file says.

  Args:
    data: its name.
    shape: (height, width, channels) of the model's input.
    resize: how images are resized for it (`engine.data.pictures.RESIZES`); "" where the file does not say it.
  """
  kind = data.partition(":")[0]
  options: dict[str, Any] = {}
  if resize and kind in ("folder", "masks", "tfds") and len(shape) == 3:
    options = {"size": shape[:2], "resize": resize}
  if kind in ("folder", "masks") and len(shape) == 3 and shape[2] == 1:
    options["channels"] = 1
  return datasets.load(data, **options).test


def of_file(file: deploy.Runner, test: Split, spec: deploy.Preprocessing | None) -> Any:
  """Returns the (N, ...) outputs of an exported file for a split's images, of several outputs a dict by name.

  Args:
    file: one of ours or of anyone, whose input is pixels or made of pixels, or what the split holds.
    test: the split.
    spec: how pixels become inputs where the file does not say it; None where nobody does. Other inputs are taken as
      they are where nobody does.

  Raises:
    UserError: the file does not say it and nobody does, or its outputs are not one for each class.
  """
  images: np.ndarray = test.images
  if not test.has_pictures:
    return file.run(spec.apply(images) if spec is not None and images.dtype == np.float32 else images)
  pixels = file.input.dtype == "uint8" and file.input.grid is None  # a file that prepares them itself
  if file.preprocessing is None and not pixels:
    if spec is None:
      raise UserError(
        f"{file.name} does not say how pixels become its input; expected a --workdir whose config says it under "
        "'preprocess', as for the model that the file was made of"
      )
    images = spec.apply(images)
  outputs = file.run(images)
  if not isinstance(test.labels, Mapping) and test.labels.ndim == 1 and outputs.shape[1:] != (len(test.classes),):
    raise UserError(
      f"{file.name} gives outputs of shape {outputs.shape[1:]} for one image; expected {(len(test.classes),)}, one for "
      f"each class of {test.name!r}"
    )
  return outputs
