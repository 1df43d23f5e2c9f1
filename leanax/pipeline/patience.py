"""Early stopping: a stage ends after some evaluations without a better validation accuracy, and its best state is kept.

Everything is read from the stage's curve, so that a resumed stage decides as the unbroken one.
"""

from collections.abc import Sequence

Curve = Sequence[tuple[int, float]]
METRIC = "validation_accuracy"


def best(curve: Curve) -> int:
  """Returns the place of the first of the best evaluations in a curve of (step, accuracy), one or more."""
  accuracies = [accuracy for _, accuracy in curve]
  return accuracies.index(max(accuracies))


def is_over(curve: Curve, patience: int) -> bool:
  """Returns whether so many evaluations have passed since the best one; with a patience of 0 never."""
  return bool(curve) and 0 < patience <= len(curve) - 1 - best(curve)


def ended(curve: Curve, steps: int) -> dict[str, float]:
  """Returns the last step of a stage, the one whose state is kept, its accuracy, and the steps that were planned."""
  kept_step, accuracy = curve[best(curve)]
  return {"last_step": curve[-1][0], "kept_step": kept_step, METRIC: accuracy, "steps": steps}


def sentence(found: dict[str, float]) -> str:
  """Returns what `ended` gives in words."""
  last, steps = found["last_step"], found["steps"]
  trained = f"stopped at step {last} of {steps}" if last < steps else f"trained all {steps} steps"
  return f"{trained}; kept as of step {found['kept_step']}, the best on the validation split"
