"""Accuracy: the share of examples, or positions, whose largest logit is that of their label. No paper."""

from typing import Any

import numpy as np

from leanax.engine.metrics import inputs
from leanax.engine.metrics.kind import Metric, Statistics


def accuracy(ignore_label: int | None = None) -> Metric:
  """Share of labels (N, *positions) that are the class of the largest logit of outputs (N, *positions, classes).

  Labels of the outputs' own shape say yes or no: a logit above 0 is yes.

  Args:
    ignore_label: a label that does not count, as those below 0.
  """
  inputs.check_ignored("accuracy", ignore_label)

  def statistics(outputs: Any, labels: Any) -> Statistics:
    outputs, labels = inputs.both("accuracy", outputs, labels)
    if outputs.ndim > 1 and outputs.shape == labels.shape and inputs.is_whole(labels):
      right, counts = (outputs > 0) == (labels > 0), labels >= 0
    else:
      outputs, labels = inputs.classes("accuracy", outputs, labels)
      right, counts = outputs.argmax(-1) == labels, inputs.known("accuracy", labels, outputs.shape[-1], ignore_label)
    axes = tuple(range(1, labels.ndim))
    return {"right": np.sum(right & counts, axes, dtype=np.int64), "count": np.sum(counts, axes, dtype=np.int64)}

  return Metric("accuracy", statistics, share, unit="%", share=True)


def share(sums: Statistics) -> float:
  """Returns "right" / "count"; NaN where nothing counts."""
  return float(sums["right"]) / float(sums["count"]) if sums["count"] else float("nan")
