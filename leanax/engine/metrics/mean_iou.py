"""Mean intersection over union, for segmentation. Source: J. Long, E. Shelhamer and T. Darrell, "Fully Convolutional
Networks for Semantic Segmentation" (arXiv:1411.4038), section 5, over the whole split as in PASCAL VOC (M. Everingham
et al., 2010).

    IoU_c = (predicted c and labelled c) / (predicted c or labelled c),   the mean over the classes that occur

A class that no position is labelled or predicted as does not count.
"""

from typing import Any

import numpy as np

from leanax.engine.metrics import inputs
from leanax.engine.metrics.kind import Metric, Statistics


def mean_iou(ignore_label: int | None = None) -> Metric:
  """Mean over classes of the IoU of labels (N, *positions) and the largest of outputs (N, *positions, classes).

  Args:
    ignore_label: a label, such as 255, whose positions do not count, as those below 0.
  """
  inputs.check_ignored("mean_iou", ignore_label)

  def statistics(outputs: Any, labels: Any) -> Statistics:
    outputs, labels = inputs.classes("mean_iou", outputs, labels)
    classes = outputs.shape[-1]
    counts = inputs.known("mean_iou", labels, classes, ignore_label)
    found = np.zeros((2, len(labels), classes), np.int64)
    for row, (logits, label, known) in enumerate(zip(outputs, labels, counts, strict=True)):
      answers, label = logits.argmax(-1)[known], label[known].astype(np.int64)
      common = np.bincount(label[label == answers], minlength=classes)
      either = np.bincount(label, minlength=classes) + np.bincount(answers, minlength=classes) - common
      found[:, row] = common, either
    return {"intersection": found[0], "union": found[1]}

  return Metric("mean_iou", statistics, value, unit="%", title="mean IoU", per_class=per_class)


def per_class(sums: Statistics) -> np.ndarray:
  """Returns the IoU of each class; NaN of one that does not count."""
  union = np.asarray(sums["union"], np.float64)
  return np.where(union > 0, sums["intersection"] / np.where(union > 0, union, 1.0), np.nan)


def value(sums: Statistics) -> float:
  """Returns the mean over the classes that count; NaN without any."""
  found = per_class(sums)
  counts = np.isfinite(found)
  return float(found[counts].mean()) if counts.any() else float("nan")
