"""Data of a user's own function, "package.module:name"."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from leanax.core import imports
from leanax.core.errors import UserError, unknown
from leanax.engine.data.splits import Dataset, Split, hold_out, make_split

SPLITS = Dataset._fields
HELD_OUT = 0.1  # of the training split, where there is no validation split
EXPECTED = "a datasets.Dataset, or {'train': (inputs, labels), 'test': (inputs, labels)}"


def load_own(name: str, options: Mapping[str, Any], validation: int | float | None = None) -> Dataset:
  """Loads the data that a user's function gives.

  Args:
    name: its import path. It is called with the options, and gives a `Dataset`, or {"train": (inputs, labels), "test":
      (inputs, labels)} with perhaps "validation", and "classes", names; arrays as of `make_split`.
    options: its keywords.
    validation: number or fraction to hold out of the training split; 0.1 where the function gives no such split.

  Raises:
    UserError: it is not there, takes no such keyword, raises something (its line is named), or gives something else.
  """
  fn = function(name)
  parameters = inspect.signature(fn).parameters
  for key in options:
    if key not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
      raise unknown(f"option of data set {name!r}", key, parameters)
  with imports.failing(f"data set {name!r}"):
    found = fn(**options)
  if isinstance(found, Dataset) and all(isinstance(split, Split) for split in found):
    if validation is not None:
      raise UserError(f"data set {name!r} has a validation split of its own, so data.validation must not be given")
    return found
  if not isinstance(found, Mapping):
    raise UserError(f"data set {name!r} gives a {type(found).__name__}; expected {EXPECTED}")
  return _checked(name, found, validation)


def function(name: str) -> Callable[..., Any]:
  """Returns the user's function of an import path; errors as of `load_own`."""
  fn = imports.found(name, f"data set {name!r}")
  if not callable(fn):
    raise UserError(f"data set {name!r} is a {type(fn).__name__}; expected a function that gives {EXPECTED}")
  return fn


def _checked(name: str, found: Mapping[str, Any], validation: int | float | None) -> Dataset:
  """Returns the splits of a mapping; ids are numbered over all of them."""
  for key in found:
    if key not in (*SPLITS, "classes"):
      raise unknown(f"split of data set {name!r}", key, (*SPLITS, "classes"))
  splits: dict[str, Split] = {}
  first = 0
  for key in SPLITS:
    if key not in found:
      if key == "validation":
        continue
      raise UserError(f"data set {name!r} has no {key!r}; expected {EXPECTED}")
    pair = found[key]
    if not isinstance(pair, tuple | list) or len(pair) != 2:
      raise UserError(f"data set {name!r}: {key!r} is a {type(pair).__name__}; expected (inputs, labels)")
    inputs, labels = pair
    ids = np.arange(first, first + len(inputs))
    splits[key] = make_split(inputs, labels, ids, found.get("classes", ()), f"{name}/{key}")
    first += len(inputs)
  if "validation" not in splits:
    share = HELD_OUT if validation is None else validation
    splits["train"], splits["validation"] = hold_out(splits["train"], share, name)
  elif validation is not None:
    raise UserError(f"data set {name!r} has a validation split of its own, so data.validation must not be given")
  whole = Dataset(*(splits[key] for key in SPLITS))
  for split in whole:
    if (split.images.shape[1:], split.images.dtype) != (whole.train.images.shape[1:], whole.train.images.dtype):
      raise UserError(
        f"{split.name}: inputs are {split.images.dtype} of shape {split.images.shape[1:]}, and those of "
        f"{whole.train.name} {whole.train.images.dtype} of shape {whole.train.images.shape[1:]}; expected the same"
      )
  return whole
