"""Early stopping: a stage ends after some evaluations without a better value of the first metric on the validation
split, and its best state is kept.

Everything is read from the stage's curve, so that a resumed stage decides as the unbroken one.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # reports, which load neither jax nor numpy, read `sentence`
  from leanax.engine.metrics import Metric

Curve = Sequence[tuple[int, float]]
WORST = {"higher": -math.inf, "lower": math.inf}  # of a metric, by its direction: where it has no value


def key(metric: "Metric") -> str:
  """Returns the name of a metric's curve on the validation split."""
  return f"validation_{metric.name}"


def best(curve: Curve, metric: "Metric") -> int:
  """Returns the place of the first of the best evaluations in a curve of (step, value), one or more."""
  values = [value for _, value in curve]
  return values.index((max if metric.better == "higher" else min)(values))


def is_over(curve: Curve, patience: int, metric: "Metric") -> bool:
  """Returns whether so many evaluations have passed since the best one; with a patience of 0 never."""
  return bool(curve) and 0 < patience <= len(curve) - 1 - best(curve, metric)


def ended(curve: Curve, steps: int, metric: "Metric") -> dict[str, float]:
  """Returns the last step of a stage, the one whose state is kept, its value, and the steps that were planned."""
  kept_step, value = curve[best(curve, metric)]
  return {"last_step": curve[-1][0], "kept_step": kept_step, key(metric): value, "steps": steps}


def sentence(found: dict[str, float]) -> str:
  """Returns what `ended` gives in words."""
  last, steps = found["last_step"], found["steps"]
  trained = f"stopped at step {last} of {steps}" if last < steps else f"trained all {steps} steps"
  return f"{trained}; kept as of step {found['kept_step']}, the best on the validation split"
