"""Metrics tried on zeros before anything trains: what they cannot compare is refused, and what users' own raise."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from leanax.core import imports
from leanax.core.errors import UserError
from leanax.engine.data import Dataset, Split
from leanax.engine.metrics import Metric, statistics_of, value_of

MOST = 2**22  # numbers of outputs on which a metric is tried


def check(metrics: Sequence[Metric], outputs: Any, data: Dataset) -> None:
  """Refuses metrics that cannot compare a model's outputs with the labels of the validation and the test split.

  Args:
    metrics: of the experiment.
    outputs: shapes for one example, or a dict of them by name.
    data: of the experiment.

  Raises:
    UserError: names the metric, and the line of a user's own code.
  """
  for split in (data.validation, data.test):
    for metric in metrics:
      if len(split.ids):
        _try(metric, outputs, split)


def _try(metric: Metric, outputs: Any, split: Split) -> None:
  """Calls a metric on outputs of zeros, for the first examples of a split."""
  of_one = sum(int(np.prod(shape.shape)) for shape in jax.tree.leaves(outputs))
  count = min(len(split.ids), max(MOST // max(of_one, 1), 1))
  zeros = jax.tree.map(lambda shape: np.zeros((count, *shape.shape[1:]), np.float32), outputs)
  labels = jax.tree.map(lambda label: label[:count], split.labels)
  if isinstance(labels, Mapping):
    zeros = dict(zeros)
  try:
    with np.errstate(all="ignore"):
      value_of(metric, statistics_of(metric, zeros, labels))
  except UserError as error:
    raise UserError(f"config key 'metrics', on {split.name!r}: {error}") from error
  except Exception as error:  # a user's own metric may raise anything
    raise UserError(
      f"config key 'metrics': {metric.name!r} cannot be computed of outputs that are zeros, for {count} examples of "
      f"{split.name!r}: {imports.failure(error)}"
    ) from error
