"""The answers of a model or a file: classes, yes or no, or numbers, and how far two of them agree.

Which of them an output gives is said by its labels: floats are of numbers; whole numbers of the outputs' own shape say
yes or no, a logit above 0 being yes; other whole numbers are classes, of examples or positions.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


def named(given: Any) -> dict[str, Any]:
  """Returns outputs or labels by their names; of the only one the name is ""."""
  return dict(given) if isinstance(given, Mapping) else {"": given}


def answers(outputs: Any, labels: Any) -> dict[str, np.ndarray]:
  """Returns the answers by output: classes (N, *positions), bools, or the numbers themselves.

  Args:
    outputs: (N, ...), or a mapping of them by name.
    labels: likewise; outputs without labels are left out.
  """
  outputs, found = named(outputs), {}
  for name, label in named(labels).items():
    given, label = np.asarray(outputs[name]), np.asarray(label)
    if np.issubdtype(label.dtype, np.floating):
      found[name] = given
    else:
      found[name] = given > 0 if given.shape == label.shape else given.argmax(-1)
  return found


def is_plain(labels: Any) -> bool:
  """Returns whether each example has one class, so that its answer is kept with the figures of a file."""
  return not isinstance(labels, Mapping) and np.ndim(labels) == 1


def agreement(given: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Returns how far answers agree with those of a reference, for the same examples.

  Returns:
    "agreement", the share of examples of the same class; "answers_agree", the share of the answers where an example has
    several; "difference", of numbers: mean |given - reference| over the standard deviation of the reference, or over 1
    where that is 0, the mean over the outputs that are numbers.
  """
  classes = {name: np.asarray(x) for name, x in given.items() if not np.issubdtype(np.asarray(x).dtype, np.floating)}
  numbers = [np.asarray(x) for name, x in given.items() if name not in classes]
  others = [np.asarray(reference[name], np.float64) for name in given if name not in classes]
  found = {}
  if classes:
    same = [np.ravel(x == np.asarray(reference[name])) for name, x in classes.items()]
    several = len(classes) > 1 or any(x.ndim > 1 for x in classes.values())
    found["answers_agree" if several else "agreement"] = float(np.mean([np.mean(x) for x in same]))
  if numbers:
    pairs = [(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])) for x, y in zip(numbers, others, strict=True)]
    spread = [np.where(y.std(0) > 0, y.std(0), 1.0) for _, y in pairs]
    gaps = [np.abs(x - y).mean(0) / scale for (x, y), scale in zip(pairs, spread, strict=True)]
    found["difference"] = float(np.mean(np.concatenate(gaps)))
  return found
