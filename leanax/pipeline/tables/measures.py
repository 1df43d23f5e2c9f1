"""How reports write a metric: its title, its direction, its values and what is lost of it.

All of it is from plain data, `engine.metrics.Metric.described`: {"name", "title", "better", "unit"}.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Measure = Mapping[str, str]
ACCURACY: Measure = {"name": "accuracy", "title": "accuracy", "better": "higher", "unit": "%"}


def of(result: Mapping[str, Any]) -> Sequence[Measure]:
  """Returns the metrics of a result, the one that is compared first; of one that names none, accuracy."""
  return result.get("metrics") or [ACCURACY]


def main(result: Mapping[str, Any]) -> Measure:
  """Returns the metric by which a result compares and recommends."""
  return of(result)[0]


def is_share(measure: Measure) -> bool:
  """Returns whether values are shares, which are written in per cent and whose differences are points."""
  return measure["unit"] == "%"


def sign(measure: Measure) -> int:
  """Returns 1 where higher is better, else -1."""
  return 1 if measure["better"] == "higher" else -1


def write(measure: Measure, value: float) -> str:
  """Returns a value as text: 0.98333 of a share is "98.33 %", and of a metric in °C "0.9833 °C"."""
  return f"{100 * value:.2f} %" if is_share(measure) else f"{value:.4g} {measure['unit']}".rstrip()


def listed(metrics: Sequence[Measure], values: Mapping[str, float]) -> str:
  """Returns values as text: "98.33 %" of accuracy alone, and "mean IoU 71.20 %, accuracy 93.10 %" of others."""
  if [measure["name"] for measure in metrics] == [ACCURACY["name"]]:
    return write(ACCURACY, values[ACCURACY["name"]])
  return ", ".join(f"{measure['title']} {write(measure, values[measure['name']])}" for measure in metrics)


def head(measure: Measure) -> str:
  """Returns the head of a column: the title, and the direction where lower is better."""
  return measure["title"] + ("" if sign(measure) > 0 else ", lower is better")


def sentence_of(measure: Measure, what: str) -> str:
  """Returns the meaning of a column, such as "Accuracy of the JAX model on the test split."."""
  title = measure["title"][:1].upper() + measure["title"][1:]
  direction = "" if measure["name"] == ACCURACY["name"] else f"; {measure['better']} is better"
  return f"{title} {what}{direction}."


def lost(measure: Measure, difference: float, error: float) -> dict[str, float]:
  """Returns what a file loses, {"points", "half"}: points of a share, else in the metric's unit, and the half width of
  its 95 % interval.

  Args:
    measure: the metric.
    difference: what it loses, above 0 where it is worse.
    error: its standard error.
  """
  scale = 100 if is_share(measure) else 1
  return {"points": scale * difference, "half": scale * 1.96 * error}


def amount(measure: Measure, number: float) -> str:
  """Returns an amount of what is lost as text: "0.80" of points, else three digits."""
  return (f"{number:.2f}" if is_share(measure) else f"{number:.3g}").replace("-", "−")


def lost_words(measure: Measure, found: Mapping[str, float], against: str, where: str = "") -> str:
  """Returns what a file loses to another in words: "loses 0.28 ± 0.54 points to teacher.tflite on 360 examples".

  Args:
    measure: the metric.
    found: as of `lost`.
    against: the other file.
    where: on which examples.
  """
  size = f"{amount(measure, abs(found['points']))} ± {amount(measure, found['half'])}"
  title, less = measure["title"], found["points"] < 0
  if is_share(measure):
    of_what = "" if measure["name"] == ACCURACY["name"] else f" of {title}"
    return f"{'gains' if less else 'loses'} {size} points{of_what} {'over' if less else 'to'} {against}{where}"
  unit = f" {measure['unit']}".rstrip()
  return f"is {'better' if less else 'worse'} by {size}{unit} in {title} than {against}{where}"


def lost_head(measure: Measure, against: str) -> str:
  """Returns the head of a column of what is lost."""
  if is_share(measure):
    return (
      f"points lost to {against}"
      if measure["name"] == ACCURACY["name"]
      else f"points of {measure['title']} lost to {against}"
    )
  return f"{measure['title']} lost to {against}"
