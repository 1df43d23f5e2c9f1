"""Top-k accuracy: the share of examples, or positions, whose label is among the k largest logits. Source: O.
Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge" (arXiv:1409.0575), section 4.1, with k = 5.
"""

from typing import Any

import numpy as np

from leanax.core.errors import UserError
from leanax.engine.metrics import inputs
from leanax.engine.metrics.accuracy import share
from leanax.engine.metrics.kind import Metric, Statistics


def top_k(k: int = 5, ignore_label: int | None = None) -> Metric:
  """Share of labels (N, *positions) among the k largest of outputs (N, *positions, classes).

  Of equal logits those of lower classes come first, so that k = 1 is the accuracy.

  Args:
    k: at most the number of classes.
    ignore_label: a label that does not count, as those below 0.
  """
  inputs.check_whole("top_k: k", k)
  inputs.check_ignored("top_k", ignore_label)

  def statistics(outputs: Any, labels: Any) -> Statistics:
    outputs, labels = inputs.classes("top_k", outputs, labels)
    classes = outputs.shape[-1]
    if k > classes:
      raise UserError(f"top_k: k is {k} for {classes} classes; expected at most {classes}")
    counts = inputs.known("top_k", labels, classes, ignore_label)
    index = np.where(counts, labels, 0).astype(np.int64)[..., None]
    own = np.take_along_axis(outputs, index, -1)
    before = (outputs > own) | ((outputs == own) & (np.arange(classes) < index))
    right, axes = before.sum(-1) < k, tuple(range(1, labels.ndim))
    return {"right": np.sum(right & counts, axes, dtype=np.int64), "count": np.sum(counts, axes, dtype=np.int64)}

  return Metric(f"top_{k}", statistics, share, unit="%", title=f"top-{k} accuracy", share=True)
