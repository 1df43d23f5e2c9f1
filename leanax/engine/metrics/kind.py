"""The type of every metric: numbers per example, and a function of their sums.

A metric is a function of sums over examples. It is therefore the same over batches of any sizes and over devices, and
its standard error follows from leaving out one example at a time. That of a difference of two models is taken on the
same examples: what both find hard cancels.

Source of the standard errors: B. Efron, "The Jackknife, the Bootstrap and Other Resampling Plans" (1982), chapter 3:

    SE^2 = (n - 1) / n * sum_i (v_i - mean v)^2,    v_i the value without example i

times (n - 1) / n, which makes it sqrt(p (1 - p) / n) for a share p of n examples. Of two shares of examples half an
example is added to each of the four cells (both right, one of them, none), so that models which never differ have an
error too: Agresti and Min, "Simple improved confidence intervals for comparing matched proportions" (2005).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanax.core.errors import UserError, unknown

BETTER = ("higher", "lower")
MOST = 65536  # numbers of one example's statistics; an image of them would fill result files
Statistics = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
  """A metric.

  Attributes:
    name: in configs, results and curves, such as "mean_iou".
    statistics: `statistics(outputs, labels) -> {key: (N, ...) numbers}`, of N examples; numpy arrays, or mappings of
      them by the names of the outputs.
    value: `value(sums) -> float`, of the sums of these over examples.
    better: "higher" or "lower".
    unit: of the value; "%" is a share from 0 to 1, which is written in per cent.
    title: in reports; by default the name.
    per_class: `per_class(sums) -> (classes,)` values, NaN for a class that does not count; None without.
    output: the output that is read, with its labels, of a model with several; "" for all of them.
    share: the value is "right" / "count" of the statistics, where an example that counts once is right or wrong.
  """

  name: str
  statistics: Callable[[Any, Any], Statistics]
  value: Callable[[Statistics], float]
  better: str = "higher"
  unit: str = ""
  title: str = ""
  per_class: Callable[[Statistics], np.ndarray] | None = None
  output: str = ""
  share: bool = False

  def __post_init__(self):
    if not isinstance(self.name, str) or not self.name.isidentifier():
      raise UserError(f"a metric is called {self.name!r}; expected letters, digits and '_', such as 'mean_iou'")
    if self.better not in BETTER:
      raise unknown(f"'better' of the metric {self.name!r}", self.better, BETTER)
    for key in ("statistics", "value"):
      if not callable(getattr(self, key)):
        raise UserError(f"'{key}' of the metric {self.name!r} is {getattr(self, key)!r}; expected a function")

  def described(self) -> dict[str, str]:
    """Returns what reports say of it, plain data: its name, title, direction and unit."""
    title = self.title or self.name.replace("_", " ")
    return {"name": self.name, "title": title, "better": self.better, "unit": self.unit}


def statistics_of(metric: Metric, outputs: Any, labels: Any) -> dict[str, np.ndarray]:
  """Returns the statistics of each example, checked.

  Args:
    metric: the metric.
    outputs: (N, ...) of a model, or a mapping of them by name.
    labels: (N, ...), or a mapping of them by the names of outputs.

  Raises:
    UserError: an output that is not there, outputs and labels that the metric cannot compare, or statistics that are
      no numbers with the examples as their first axis.
  """
  outputs, labels = (_picked(metric, what, x) for what, x in (("outputs", outputs), ("labels", labels)))
  examples = len(next(iter(outputs.values())) if isinstance(outputs, Mapping) else outputs)
  found = metric.statistics(outputs, labels)
  if not isinstance(found, Mapping) or not found:
    raise UserError(
      f"the statistics of the metric {metric.name!r} are a {type(found).__name__}; expected {{key: (N, ...) numbers}}"
    )
  arrays = {str(key): np.asarray(x) for key, x in found.items()}
  for key, x in arrays.items():
    if x.shape[:1] != (examples,) or not (np.issubdtype(x.dtype, np.number) or x.dtype == bool):
      raise UserError(
        f"the statistics {key!r} of the metric {metric.name!r} are {x.dtype} of shape {x.shape} for {examples} "
        f"examples; expected numbers of shape ({examples}, ...)"
      )
    if x.size > MOST * examples:
      raise UserError(
        f"the statistics {key!r} of the metric {metric.name!r} hold {x[0].size:,} numbers of each example; expected at "
        f"most {MOST:,}, such as sums over its positions"
      )
  return arrays


def _picked(metric: Metric, what: str, given: Any) -> Any:
  """Returns the outputs, or labels, that a metric reads."""
  if not isinstance(given, Mapping):
    return np.asarray(given)
  if not metric.output:
    return {name: np.asarray(x) for name, x in given.items()}
  if metric.output not in given:
    raise unknown(f"output of the metric {metric.name!r}, of which there are {what},", metric.output, given)
  return np.asarray(given[metric.output])


def sums(statistics: Statistics) -> dict[str, Any]:
  """Returns the sums over the examples, in float64."""
  return {key: np.sum(x, 0, dtype=np.float64) for key, x in statistics.items()}


def value_of(metric: Metric, statistics: Statistics) -> float:
  """Returns the value over all examples.

  Raises:
    UserError: `value` gives no number.
  """
  return _number(metric, metric.value(sums(statistics)))


def _number(metric: Metric, found: Any) -> float:
  try:
    return float(found)
  except (TypeError, ValueError):
    raise UserError(f"the value of the metric {metric.name!r} is a {type(found).__name__}; expected a number") from None


def measured(metric: Metric, outputs: Any, labels: Any) -> float:
  """Returns the value for all examples; arguments and errors as of `statistics_of`."""
  return value_of(metric, statistics_of(metric, outputs, labels))


def standard_error(metric: Metric, statistics: Statistics) -> float:
  """Returns the standard error of the value, over examples; NaN of one example."""
  rows, weights, sums_of = _rows(statistics)
  return _error(_left_out(metric, rows, weights, sums_of), weights)


def paired(metric: Metric, first: Statistics, other: Statistics) -> tuple[float, float]:
  """Returns what `other` loses to `first`, and the standard error of this difference.

  The loss is above 0 where `other` is worse, in the unit of the value.

  Args:
    metric: the metric.
    first: statistics of one model.
    other: statistics of another model, for the same examples.
  """
  sign = 1.0 if metric.better == "higher" else -1.0
  lost = sign * (value_of(metric, first) - value_of(metric, other))
  both = {f"{index}/{key}": x for index, each in enumerate((first, other)) for key, x in each.items()}
  extra = _cells(both) if metric.share and all(np.all(each["count"] == 1) for each in (first, other)) else None
  rows, weights, sums_of = _rows(both, extra)

  def difference(found: Statistics) -> float:
    each = ({key[2:]: x for key, x in found.items() if key[0] == index} for index in "01")
    one, two = (_number(metric, metric.value(part)) for part in each)
    return one - two

  return lost, _error(_values(difference, rows, weights, sums_of), weights)


def _cells(both: Statistics) -> list[dict[str, float]]:
  """Returns the four examples of which half is added to those of two shares: each model right or wrong."""
  right = [(a, b) for a in (0.0, 1.0) for b in (0.0, 1.0)]
  others = {key: 1.0 for key in both}
  return [{**others, "0/right": a, "1/right": b} for a, b in right]


def _rows(
  statistics: Statistics, extra: list[dict[str, float]] | None = None
) -> tuple[list[dict[str, np.ndarray]], np.ndarray, dict[str, np.ndarray]]:
  """Returns the statistics that differ, how many examples have each, and the sums over all of them.

  Many examples have the same statistics: of a share there are two kinds.

  Args:
    statistics: of each example.
    extra: examples that are added, each with the weight 1/2.
  """
  shapes = {key: x.shape[1:] for key, x in statistics.items()}
  flat = np.concatenate([x.reshape(len(x), -1).astype(np.float64) for x in statistics.values()], 1)
  weights = np.ones(len(flat))
  if extra:
    flat = np.concatenate([flat, [[one[key] for key in statistics] for one in extra]])
    weights = np.concatenate([weights, np.full(len(extra), 0.5)])
  kinds, place = np.unique(flat, axis=0, return_inverse=True)
  counts = np.bincount(place.reshape(-1), weights, len(kinds))
  ends = np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1]

  def entry(row: np.ndarray) -> dict[str, np.ndarray]:
    return {key: part.reshape(shape) for (key, shape), part in zip(shapes.items(), np.split(row, ends), strict=True)}

  return [entry(row) for row in kinds], counts, entry(counts @ kinds)


def _left_out(metric: Metric, rows: Any, weights: np.ndarray, sums_of: Any) -> np.ndarray:
  return _values(lambda found: _number(metric, metric.value(found)), rows, weights, sums_of)


def _values(fn: Callable[[Any], float], rows: Any, weights: np.ndarray, sums_of: Any) -> np.ndarray:
  """Returns the value without one example of each kind; NaN where there is none without it, and they are left out."""
  if weights.sum() <= 1:
    return np.full(len(rows), np.nan)
  found = []
  for row in rows:
    try:
      found.append(fn({key: sums_of[key] - x for key, x in row.items()}))
    except UserError:  # such as the r2 of labels that are constant without this example
      found.append(np.nan)
  return np.array(found)


def _error(values: np.ndarray, weights: np.ndarray) -> float:
  """Returns the standard error from the values without one example, and how many examples stand for each."""
  known = np.isfinite(values)
  if not known.any():
    return math.nan
  values, weights = values[known], weights[known]
  count = weights.sum()
  mean = weights @ values / count
  return float(np.sqrt(weights @ (values - mean) ** 2) * (count - 1) / count)
