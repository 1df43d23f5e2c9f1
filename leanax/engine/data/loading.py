"""Loads data sets by name."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from leanax.core import imports
from leanax.core.errors import UserError, unknown
from leanax.engine.data import digits, masks, own, prepared, stock, synthetic
from leanax.engine.data.splits import Dataset

PLAIN: dict[str, Callable[..., Dataset]] = {"digits": digits.load, "synthetic": synthetic.load}
WITH_ARGUMENT: dict[str, Callable[..., Dataset]] = {
  "tfds": prepared.load_tfds,
  "folder": prepared.load_folder,
  "masks": masks.load_masks,
}
EXAMPLES = (*PLAIN, *(f"tfds:{name}" for name in stock.NAMES), "folder:DIRECTORY", "tfds:DIRECTORY", "masks:DIRECTORY")


def load(
  name: str,
  *,
  data_dir: str | Path | None = None,
  cache_dir: str | Path | None = None,
  validation: int | float | None = None,
  **options: Any,
) -> Dataset:
  """Loads a data set as host arrays.

  Args:
    name: one of
      - "digits": scikit-learn's embedded 8x8 digits, with a fixed stratified split;
      - "synthetic": generated; options `shape`, `classes`, `train`, `validation`, `test`, `noise`, `shift`, `seed`;
      - "tfds:NAME" or "tfds:DIRECTORY": a set of TensorFlow Datasets; options `size`, `resize`; see
        `prepared.load_tfds`;
      - "folder:DIRECTORY": a user's own images; options `size`, `resize`, `channels`, `test`, `split_seed`; see
        `prepared.load_folder`;
      - "masks:DIRECTORY": a user's own images with a mask of each; options `size`, `resize`, `channels`, `classes`; see
        `masks.load_masks`;
      - "package.module:name": a user's function of options; see `own.load_own`.
    data_dir: the directory of original files and prepared sets; by default LEANAX_DATA_DIR. Sets without files ignore
      it.
    cache_dir: the directory of sets that are prepared here; by default LEANAX_CACHE_DIR, else ~/.cache/leanax.
    validation: examples to hold out of the training split (a number, or a fraction below 1.0).
    **options: keyword arguments of that kind of set; None is the default.

  Raises:
    UserError: a name, option or file is wrong.
  """
  if is_own(name):
    return own.load_own(name, options, validation)
  loader, allowed = _loader(name), parameters(name)
  known = inspect.signature(loader).parameters
  folders = {"data_dir": data_dir, "cache_dir": cache_dir}
  given = {key: value for key, value in {**options, "validation": validation}.items() if value is not None}
  for key in given:
    if key not in allowed:
      if not allowed:
        raise UserError(f"data set {name!r} takes no option {key!r}: its splits are fixed")
      raise unknown(f"option of data set {name!r}", key, allowed)
  return loader(**given, **{key: value for key, value in folders.items() if key in known})


def is_own(name: str) -> bool:
  """Returns whether a name is the import path of a user's function, "package.module:name"."""
  return name.partition(":")[0] not in WITH_ARGUMENT and imports.is_path(name)


def parameters(name: str) -> dict[str, inspect.Parameter]:
  """Returns the options of a data set by their names; errors as of `load`."""
  found = inspect.signature(own.function(name) if is_own(name) else _loader(name)).parameters
  return {key: one for key, one in found.items() if key not in ("data_dir", "cache_dir", "argument")}


def _loader(name: str) -> Callable[..., Dataset]:
  kind, colon, argument = name.partition(":")
  if not colon and kind in PLAIN:
    return PLAIN[kind]
  if argument and kind in WITH_ARGUMENT:
    return partial(WITH_ARGUMENT[kind], argument)
  raise unknown("data set", name, EXAMPLES)
