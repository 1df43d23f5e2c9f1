"""Root of the mean squared error, for regression. No paper."""

from typing import Any

import numpy as np

from leanax.engine.metrics import inputs
from leanax.engine.metrics.kind import Metric, Statistics


def rmse(unit: str = "") -> Metric:
  """Root of the mean of (output - label)^2 over examples and positions, both (N, ..., outputs); the mean over outputs.

  Args:
    unit: of outputs and labels, such as "°C".
  """

  def statistics(outputs: Any, labels: Any) -> Statistics:
    outputs, labels = inputs.numbers("rmse", outputs, labels)
    positions = np.full(len(outputs), outputs.shape[1])
    return {"squares": ((outputs - labels) ** 2).sum(1), "count": positions}

  def value(sums: Statistics) -> float:
    return float(np.mean(np.sqrt(np.maximum(sums["squares"], 0.0) / sums["count"])))

  return Metric("rmse", statistics, value, better="lower", unit=unit, title="RMSE")
