"""The F1 score, for multi-label classification. Source: C. J. van Rijsbergen, "Information Retrieval" (1979), chapter
7; micro and macro averages as in scikit-learn.

    F1 = 2 TP / (2 TP + FP + FN)
"""

from typing import Any

import numpy as np

from leanax.core.errors import unknown
from leanax.engine.metrics import inputs
from leanax.engine.metrics.kind import Metric, Statistics

AVERAGES = ("micro", "macro")


def f1(average: str = "macro") -> Metric:
  """F1 of logits, yes above 0, and labels 0 and 1 of their shape, (N, ..., outputs).

  Args:
    average: "macro", the mean of the F1 of each output, 0 for one that is never yes; or "micro", of all together.
  """
  if average not in AVERAGES:
    raise unknown("average of f1", average, AVERAGES)

  def statistics(outputs: Any, labels: Any) -> Statistics:
    yes, wanted = inputs.switches("f1", outputs, labels)
    found = {"both": yes & wanted, "either": yes ^ wanted}
    return {key: np.sum(x, 1, dtype=np.int64) for key, x in found.items()}

  def per_class(sums: Statistics) -> np.ndarray:
    return _f1(sums["both"], sums["either"])

  def value(sums: Statistics) -> float:
    if average == "micro":
      return float(_f1(np.sum(sums["both"]), np.sum(sums["either"])))
    return float(np.mean(per_class(sums)))

  return Metric("f1", statistics, value, unit="%", title=f"F1 ({average})", per_class=per_class)


def _f1(both: Any, either: Any) -> np.ndarray:
  total = 2 * np.asarray(both, np.float64) + either
  return 2 * both / np.where(total > 0, total, 1.0)
