"""Per class: how many of its examples each file of a run has right, and what it takes the others for."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from leanax.pipeline.tables.measures import Measure, write
from leanax.pipeline.tables.tables import ABSENT, count, percent

MOST = 20  # classes that are shown; of more the worst ones


def classes(decisions: Mapping[str, Sequence[Any]], labels: Sequence[Any], names: Sequence[Any]) -> dict[str, Any]:
  """Returns the figures of each class.

  Args:
    decisions: (N, ...) predicted classes, by the name of a file or of a stage.
    labels: (N, ...) of the same examples, or positions; one that is not the number of a class is left out.
    names: of the classes.

  Returns:
    {"names", "examples": of each class, "of": {name: {"right": of each class, "taken_for": [[class, another one,
    examples], ...]}}}.
  """
  import numpy as np  # the report's page is written without it

  every = np.ravel(labels).tolist()
  known = [place for place, label in enumerate(every) if 0 <= label < len(names)]
  examples = Counter(every[place] for place in known)
  of = {}
  for name, each in decisions.items():
    answers = np.ravel(each).tolist()
    cells = Counter((every[place], answers[place]) for place in known)
    of[name] = {
      "right": [cells[label, label] for label in range(len(names))],
      "taken_for": [[one, other, found] for (one, other), found in sorted(cells.items()) if one != other],
    }
  each = [examples[label] for label in range(len(names))]
  return {"names": [str(name) for name in names], "examples": each, "of": of}


def values(each: Mapping[str, Sequence[float | None]], names: Sequence[Any], measure: Measure) -> dict[str, Any]:
  """Returns the values of a metric that has one for each class.

  Args:
    each: (classes,) values, None for a class that does not count, by the name of a file or of a stage.
    names: of the classes; a class without one has its number.
    measure: the metric, plain data (`tables.measures`).

  Returns:
    {"names", "metric", "values": {name: of each class}}.
  """
  count = max(map(len, each.values()), default=0)
  texts = [str(names[label]) if label < len(names) else str(label) for label in range(count)]
  return {"names": texts, "metric": dict(measure), "values": {name: list(found) for name, found in each.items()}}


def values_table(found: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
  """Returns that metric per class as text cells, the heads first: of some files, at most `MOST` classes."""
  last = found["values"][names[-1]]
  every = [
    label for label in range(len(found["names"])) if any(found["values"][name][label] is not None for name in names)
  ]
  if len(every) > MOST:
    every = sorted((label for label in every if last[label] is not None), key=lambda label: last[label])[:MOST]
  rows = [["class", *names]]
  for label in every:
    cells = [found["values"][name][label] for name in names]
    rows.append([found["names"][label], *(ABSENT if x is None else write(found["metric"], x) for x in cells)])
  return rows


def values_note(found: Mapping[str, Any]) -> str:
  """Returns what a reader has to know of `values_table`."""
  every = len(found["names"])
  text = f"{found['metric']['title']} of each class, of the files in their runtimes, on the test split."
  return f"{text} Shown are the {MOST} worst of {every} classes." if every > MOST else text


def shown(found: Mapping[str, Any], name: str) -> list[int]:
  """Returns the numbers of the classes that a page shows: all in order, or of many the worst of a file, worst first."""
  every = [label for label, examples in enumerate(found["examples"]) if examples]
  if len(every) <= MOST:
    return every
  right = found["of"][name]["right"]
  return sorted(every, key=lambda label: right[label] / found["examples"][label])[:MOST]


def table(found: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
  """Returns the accuracy per class as text cells, the heads first: of some files, and what the last takes it for."""
  heads = ["class", "examples", *names, f"{names[-1]} takes it for"]
  rows = [heads]
  for label in shown(found, names[-1]):
    examples = found["examples"][label]
    others = [(other, number) for one, other, number in found["of"][names[-1]]["taken_for"] if one == label]
    most = sorted(others, key=lambda pair: -pair[1])[:3]
    words = ", ".join(f"{_name(found, other)} ({number})" for other, number in most) or ABSENT
    accuracies = [percent(found["of"][name]["right"][label] / examples) for name in names]
    rows.append([found["names"][label], count(examples), *accuracies, words])
  return rows


def confusion(found: Mapping[str, Any], name: str) -> tuple[list[str], list[tuple[str, list[int]]]]:
  """Returns the heads of a file's confusion matrix, and its rows: a class, and the examples taken for each head."""
  labels = shown(found, name)
  cells = {(one, other): number for one, other, number in found["of"][name]["taken_for"]}
  cells |= {(label, label): found["of"][name]["right"][label] for label in labels}
  heads = [found["names"][label] for label in labels]
  rows = [(found["names"][one], [cells.get((one, other), 0) for other in labels]) for one in labels]
  others = [found["examples"][one] - sum(row) for one, (_, row) in zip(labels, rows, strict=True)]
  if any(others):
    heads.append("others")
    rows = [(name, [*row, number]) for (name, row), number in zip(rows, others, strict=True)]
  return heads, rows


def _name(found: Mapping[str, Any], label: int) -> str:
  """Returns the name of a class; of an output of a network beyond the classes its number."""
  return found["names"][label] if label < len(found["names"]) else str(label)
