"""Mean absolute error, for regression. No paper."""

from typing import Any

import numpy as np

from leanax.engine.metrics import inputs
from leanax.engine.metrics.kind import Metric, Statistics


def mae(unit: str = "") -> Metric:
  """Mean of |output - label| over examples, positions and outputs, both (N, ..., outputs).

  Args:
    unit: of outputs and labels, such as "°C".
  """

  def statistics(outputs: Any, labels: Any) -> Statistics:
    outputs, labels = inputs.numbers("mae", outputs, labels)
    positions = np.full(len(outputs), outputs.shape[1])
    return {"error": np.abs(outputs - labels).sum(1), "count": positions}

  def value(sums: Statistics) -> float:
    return float(np.mean(sums["error"] / sums["count"]))

  return Metric("mae", statistics, value, better="lower", unit=unit, title="MAE")
