"""Metrics: what a trained model or a file is judged by, one file per metric."""

from leanax.engine.metrics.accuracy import accuracy
from leanax.engine.metrics.f1 import f1
from leanax.engine.metrics.kind import Metric, measured, paired, standard_error, statistics_of, value_of
from leanax.engine.metrics.mae import mae
from leanax.engine.metrics.mean_iou import mean_iou
from leanax.engine.metrics.r2 import r2
from leanax.engine.metrics.rmse import rmse
from leanax.engine.metrics.top_k import top_k

__all__ = [
  "Metric",
  "accuracy",
  "f1",
  "mae",
  "mean_iou",
  "measured",
  "paired",
  "r2",
  "rmse",
  "standard_error",
  "statistics_of",
  "top_k",
  "value_of",
]
