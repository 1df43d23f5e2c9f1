"""The coefficient of determination, for regression: the share of the labels' variance that outputs explain. No paper.

    R^2 = 1 - sum (y - output)^2 / sum (y - mean y)^2,   per output; the mean over outputs

It is 1 for exact outputs, 0 for the mean of the labels, and may be below 0.
"""

from typing import Any

import numpy as np

from leanax.core.errors import UserError
from leanax.engine.metrics import inputs
from leanax.engine.metrics.kind import Metric, Statistics


def r2() -> Metric:
  """R^2 of outputs and labels, both (N, ..., outputs); labels that are constant in an output have none."""

  def statistics(outputs: Any, labels: Any) -> Statistics:
    outputs, labels = inputs.numbers("r2", outputs, labels)
    found = {"residual": (outputs - labels) ** 2, "label": labels, "square": labels**2}
    return {**{key: x.sum(1) for key, x in found.items()}, "count": np.full(len(outputs), outputs.shape[1])}

  def value(sums: Statistics) -> float:
    total = sums["square"] - sums["label"] ** 2 / sums["count"]
    constant = total <= 1e-12 * np.abs(sums["square"])
    if constant.any():
      raise UserError(
        f"the metric 'r2' needs labels that vary, and those of output {int(np.argmax(constant))} are the same in all "
        "examples; expected others, or the metric 'mae' or 'rmse'"
      )
    return float(np.mean(1.0 - sums["residual"] / total))

  return Metric("r2", statistics, value, title="R²")
