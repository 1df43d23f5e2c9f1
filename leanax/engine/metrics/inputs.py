"""The outputs and labels of metrics, checked: of classes, of yes and no, and of numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from leanax.core import ranges
from leanax.core.errors import UserError


def both(name: str, outputs: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
  """Returns the outputs and labels of one output.

  Raises:
    UserError: there are several.
  """
  for what, given in (("outputs", outputs), ("labels", labels)):
    if isinstance(given, Mapping):
      raise UserError(
        f"the metric {name!r} reads one output, and there are several {what}, {', '.join(map(repr, given))}; expected "
        "one of them as its 'output'"
      )
  return np.asarray(outputs), np.asarray(labels)


def is_whole(labels: np.ndarray) -> bool:
  """Returns whether labels are whole numbers or bools."""
  return labels.dtype == bool or np.issubdtype(labels.dtype, np.integer)


def classes(name: str, outputs: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
  """Returns outputs (N, *positions, classes) and labels (N, *positions), whole numbers.

  Raises:
    UserError: they are of other shapes or types.
  """
  outputs, labels = both(name, outputs, labels)
  if outputs.ndim < 2 or not is_whole(labels) or labels.shape != outputs.shape[:-1]:
    raise UserError(
      f"the metric {name!r} compares outputs (N, *positions, classes) with whole numbers (N, *positions); got outputs "
      f"of shape {outputs.shape} and labels {labels.dtype} of shape {labels.shape}"
    )
  return outputs, labels


def switches(name: str, outputs: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
  """Returns outputs and labels (N, outputs), each yes where a logit is above 0 and a label is not 0; positions are rows
  of one example, (N, positions, outputs).

  Raises:
    UserError: they are of other shapes or types, or a label is neither 0 nor 1.
  """
  outputs, labels = both(name, outputs, labels)
  if outputs.ndim < 2 or not is_whole(labels) or labels.shape != outputs.shape:
    raise UserError(
      f"the metric {name!r} compares logits with labels of the same shape, 0 and 1 (N, ..., outputs); got outputs of "
      f"shape {outputs.shape} and labels {labels.dtype} of shape {labels.shape}"
    )
  if np.any((labels != 0) & (labels != 1)):
    raise UserError(f"the metric {name!r} compares yes and no; expected labels 0 and 1")
  return _rows(outputs > 0), _rows(labels != 0)


def numbers(name: str, outputs: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
  """Returns outputs and labels (N, positions, outputs) in float64.

  Raises:
    UserError: they are of two shapes, or labels are class numbers.
  """
  outputs, labels = both(name, outputs, labels)
  if outputs.ndim < 2 or is_whole(labels) or labels.shape != outputs.shape:
    raise UserError(
      f"the metric {name!r} compares outputs with labels that are floats of the same shape, (N, ..., outputs); got "
      f"outputs of shape {outputs.shape} and labels {labels.dtype} of shape {labels.shape}"
    )
  return _rows(outputs.astype(np.float64)), _rows(labels.astype(np.float64))


def _rows(x: np.ndarray) -> np.ndarray:
  return x.reshape(len(x), -1, x.shape[-1])


def check_ignored(name: str, ignore_label: Any) -> None:
  """Refuses an ignored label that is no whole number."""
  if ignore_label is not None and type(ignore_label) is not int:
    raise UserError(f"{name}: ignore_label is {ignore_label!r}; expected a whole number, such as 255, or None")


def known(name: str, labels: np.ndarray, classes: int, ignore_label: int | None) -> np.ndarray:
  """Returns which labels count, bools; those below 0 and the ignored one do not.

  Raises:
    UserError: another label is no class.
  """
  counts = labels >= 0
  if ignore_label is not None:
    counts = counts & (labels != ignore_label)
  wrong = counts & (labels >= classes)
  if wrong.any():
    raise UserError(
      f"the metric {name!r} got the label {labels[wrong][0]} of {classes} classes; expected 0 to {classes - 1}; a "
      "label that says that there is none is given as 'ignore_label'"
    )
  return counts


def check_whole(name: str, value: Any) -> None:
  """Refuses what is not 1, 2, ..."""
  ranges.check(name, value, ranges.whole(1))
