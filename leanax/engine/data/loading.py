"""From a data set's name to its arrays: the one table of what names mean."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from leanax.core.errors import UserError, unknown
from leanax.engine.data import digits, prepared, stock, synthetic
from leanax.engine.data.splits import Dataset

PLAIN: dict[str, Callable[..., Dataset]] = {"digits": digits.load, "synthetic": synthetic.load}
WITH_ARGUMENT: dict[str, Callable[..., Dataset]] = {"tfds": prepared.load_tfds, "folder": prepared.load_folder}
EXAMPLES = (*PLAIN, *(f"tfds:{name}" for name in stock.NAMES), "folder:DIRECTORY", "tfds:DIRECTORY")


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
      - "tfds:NAME" or "tfds:DIRECTORY": a set of TensorFlow Datasets; option `size`; see `prepared.load_tfds`;
      - "folder:DIRECTORY": a user's own images; options `size`, `channels`; see `prepared.load_folder`.
    data_dir: where original files and prepared sets are looked for; LEANAX_DATA_DIR when not given. Sets that need no
      files ignore it.
    cache_dir: where we prepare sets; LEANAX_CACHE_DIR, else ~/.cache/leanax, when not given.
    validation: examples to hold out of the training split (a number, or a share below 1.0).
    **options: keyword arguments of that kind of set; None is the same as not given.

  Raises:
    UserError: a name, option or file that is wrong, in one sentence.
  """
  loader = _loader(name)
  known = inspect.signature(loader).parameters
  folders = {"data_dir": data_dir, "cache_dir": cache_dir}
  given = {key: value for key, value in {**options, "validation": validation}.items() if value is not None}
  allowed = set(known) - set(folders) - {"argument"}
  for key in given:
    if key not in allowed:
      if not allowed:
        raise UserError(f"data set {name!r} takes no option {key!r}: its splits are fixed")
      raise unknown(f"option of data set {name!r}", key, allowed)
  return loader(**given, **{key: value for key, value in folders.items() if key in known})


def _loader(name: str) -> Callable[..., Dataset]:
  kind, colon, argument = name.partition(":")
  if not colon and kind in PLAIN:
    return PLAIN[kind]
  if argument and kind in WITH_ARGUMENT:
    return partial(WITH_ARGUMENT[kind], argument)
  raise unknown("data set", name, EXAMPLES)
