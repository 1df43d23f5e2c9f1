"""A trained model, its weights and a data set to a quantized file and a report, without a config and without training.

It is a run of two stages, "float" (the model as it is) and "quantized" (rounded on the grids of calibration batches).
"""

import ast
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import quant
from leanax import deploy
from leanax.core.errors import UserError
from leanax.pipeline import one_file
from leanax.pipeline.compress import compress
from leanax.pipeline.config import loading
from leanax.pipeline.config.experiment import Experiment
from leanax.pipeline.trained import PACKED

FLOAT, QUANTIZED = "float", "quantized"  # the stages


def model(text: str) -> tuple[str, dict[str, Any]]:
  """Returns the import path and the keywords of "my.nets:Net" or "my.nets:Net(width=32, widths=(8, 16))".

  Raises:
    UserError: it is not of this form, or a keyword's value is no literal of Python.
  """
  path, bracket, inner = text.strip().partition("(")
  expected = f"--model={text!r}: expected an import path, such as my.nets:Net or my.nets:Net(width=32)"
  if not bracket:
    return path, {}
  try:
    call: Any = ast.parse(f"f({inner}", mode="eval").body
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
      raise UserError(expected)
    return path.strip(), {_name(one, expected): ast.literal_eval(one.value) for one in call.keywords}
  except (SyntaxError, ValueError) as error:
    raise UserError(f"{expected}, with values that are numbers, texts, tuples or lists") from error


def _name(keyword: ast.keyword, expected: str) -> str:
  if keyword.arg is None:
    raise UserError(expected)
  return keyword.arg


def numbers(flag: Any, kind: type = float) -> tuple[Any, ...]:
  """Returns the numbers of a flag that is a list.

  Raises:
    UserError: a text that is no number.
  """
  try:
    return tuple(kind(text) for text in flag.value)
  except ValueError:
    raise UserError(f"--{flag.name}={','.join(flag.value)}: expected numbers with commas between them") from None


def formats(out: Sequence[str], ends: Mapping[str, str]) -> tuple[str, ...]:
  """Returns the formats of files by their suffixes, once each; that of .tflite where all are packed.

  Args:
    out: the files.
    ends: as of `run`.

  Raises:
    UserError: a suffix of no format, a format without such ends, or a directory that is not there.
  """
  for path in out:
    if Path(path).suffix not in (known := sorted((*deploy.file_formats(), PACKED))):
      raise UserError(f"--out={path} has the suffix of no file format; expected one of {', '.join(known)}")
    layers = Path(path).suffix != PACKED and deploy.format_of(path).takes is deploy.Network
    if not layers and any(ends.values()):
      name, value = next((name, value) for name, value in ends.items() if value)
      raise UserError(f"--{name}={value}: {path} holds the model as it is; expected no --{name}, or no such file")
    if not Path(path).absolute().parent.is_dir():
      raise UserError(f"--out={path}: there is no directory {str(Path(path).parent)!r}")
  return tuple(dict.fromkeys(suffix for path in out if (suffix := Path(path).suffix) != PACKED)) or (".tflite",)


def config(
  path: str,
  kwargs: Mapping[str, Any],
  weights: str,
  data: str,
  setting: str = "w8a8",
  *,
  export: Sequence[str] = ("tflite",),
  data_kwargs: Mapping[str, Any] | None = None,
  limit: int = 0,
  preprocess: Mapping[str, Any] | None = None,
  calibration_batches: int = 8,
  batch_size: int = 64,
  entry: str = "",
) -> Experiment:
  """Returns the experiment that the command runs.

  Args:
    path: the import path of the model.
    kwargs: its keywords.
    weights: the file or directory of its weights.
    data: the name of a data set, such as "folder:photos".
    setting: of every layer, as of `quant.parse`; the first and the last have 8 bits at least.
    export: formats of the files, as of a stage's key `export`.
    data_kwargs: keywords of the data set, such as {"size": (64, 64)}; None stands for its default.
    limit: at most this many examples per split; 0 for all.
    preprocess: keys of `experiment.Preprocess` that are not the defaults.
    calibration_batches: training batches that give the ranges of activations.
    batch_size: of them.
    entry: the part of the file that holds the weights; "" where one alone does.

  Raises:
    UserError: a value that its key of a config does not take.
  """
  try:
    quant.parse(setting)
  except UserError as error:
    raise UserError(f"--quant={setting}: {error}") from error
  files = {"export": tuple(export)}
  rounded = {"rules": (("*", setting),), "calibration_batches": calibration_batches}
  given = {
    "name": f"{path.rpartition(':')[2]}, {setting}",
    "data": {"name": data, "limit": limit, "kwargs": {k: v for k, v in (data_kwargs or {}).items() if v is not None}},
    "preprocess": dict(preprocess or {}),
    "models": {"student": {"name": path, "kwargs": dict(kwargs), "weights": weights, "entry": entry}},
    "stages": {
      FLOAT: {"kind": "pretrained", **files},
      QUANTIZED: {"kind": "post_training", "start": FLOAT, "batch_size": batch_size, "quant": rounded, **files},
    },
    "run": (FLOAT, QUANTIZED),
  }
  return loading.typed(loading.complete(ConfigDict(given)))


def run(given: Experiment, folder: str | Path, out: Sequence[str], ends: Mapping[str, str]) -> dict[str, Any]:
  """Runs the experiment of `config` and writes the quantized model as each of the files `out`.

  Args:
    given: the experiment.
    folder: of the run and its report.
    out: files; their suffixes say their formats.
    ends: {"input", "output"} as `deploy.with_ends` has them; "" for the network's own numbers.

  Returns:
    The content of result.json, as of `compress`.

  Raises:
    UserError: a mistake of the user, before anything is computed; or a file that only the numbers of the weights show
      to be impossible.
  """
  result = compress(given, folder)
  code = [entry.name for entry in given.models.values()]
  for path in out:
    one_file.write(str(folder), path, QUANTIZED, ends=ends, code=code)
  if words := _below_chance(result):
    print(words, file=sys.stderr)
  return result


def _below_chance(result: Mapping[str, Any]) -> str:
  """Returns a warning where the float network answers worse than chance, which its weights alone do not explain."""
  names, accuracy = result["classes"].get("names", []), result["rows"][0].get("accuracy")
  if len(names) < 2 or accuracy is None or accuracy >= 0.5 / len(names):
    return ""
  return (
    f"warning: the float network is right in {accuracy:.2%} of the test pictures, which is less than chance, "
    f"{1 / len(names):.2%}: the classes are {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}, in this order; "
    "--classes gives the order of the model's outputs, and --scale, --mean and --std what it was trained on"
  )
