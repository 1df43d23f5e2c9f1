"""From a data set's name to its arrays: the one table of what names mean."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.errors import UserError, unknown
from engine.data import digits, synthetic
from engine.data.splits import Dataset

LOADERS: dict[str, Callable[..., Dataset]] = {
  "digits": digits.load,
  "synthetic": synthetic.load,
}


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
      - "synthetic": generated; options `shape`, `classes`, `train`, `validation`, `test`, `noise`, `shift`, `seed`.
    data_dir: where original files are looked for; sets that need none ignore it.
    cache_dir: where prepared sets are kept; sets that need none ignore it.
    validation: examples to hold out of the training split (a number, or a share below 1.0).
    **options: keyword arguments of that set's own `load`; None is the same as not given.

  Raises:
    UserError: a name, option or file that is wrong, in one sentence.
  """
  if name not in LOADERS:
    raise unknown("data set", name, LOADERS)
  loader = LOADERS[name]
  known = inspect.signature(loader).parameters
  folders = {"data_dir": data_dir, "cache_dir": cache_dir}
  given = {key: value for key, value in {**options, "validation": validation}.items() if value is not None}
  for key in given:
    if key not in known:
      allowed = sorted(set(known) - set(folders))
      raise (
        unknown(f"option of data set {name!r}", key, allowed)
        if allowed
        else UserError(f"data set {name!r} takes no option {key!r}: its splits are fixed")
      )
  return loader(**given, **{key: value for key, value in folders.items() if key in known})
