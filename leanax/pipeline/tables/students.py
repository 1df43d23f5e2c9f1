"""A table of students: every stage of an experiment over several seeds, judged on the test split, nothing exported."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leanax import engine
from leanax.core.errors import UserError
from leanax.engine.data import Split
from leanax.pipeline import teacher_outputs
from leanax.pipeline import trained as models
from leanax.pipeline.config import loading
from leanax.pipeline.config.experiment import FILE, Experiment, Stage, model_code, teacher_names
from leanax.pipeline.environment import environment
from leanax.pipeline.seeds import train_seeds
from leanax.pipeline.tables.tables import interval
from leanax.pipeline.trained import Trained


class Column(NamedTuple):
  """A column: its key in a stage's row, its head, and by what a value is multiplied to be shown."""

  key: str
  head: str
  factor: float = 100.0


COLUMNS = (
  Column("accuracy", "test accuracy, %"),
  Column("matched", "biases matched to the prior, %"),
  Column("agreement", "agrees with the teacher, %"),
  Column("agreement_5", "in the teacher's five, %"),
  Column("divergence", "KL from the teacher", 1.0),
  Column("calibration", "calibration error, %"),
)


def students(spec: str, title: str, seeds: int, folder: Path, against: str = "") -> dict[str, Any]:
  """Trains all stages of a config over seeds, and judges each on the test split.

  Args:
    spec: a config file, optionally with an argument.
    title: of the table.
    seeds: number of seeds.
    folder: where the runs go.
    against: the stage that the others are compared with, paired by seed; none by default.

  Returns:
    {"title", "config", "examples", "seeds", "against", "environment", "stages": [{"name", "accuracy": [per seed],
    ...}]}; a figure that a stage does not have is left out.
  """
  config = loading.experiment(spec, [("seeds", str(seeds))])
  if config.metrics != ("accuracy",):
    raise UserError(f"config key 'metrics' is {config.metrics!r}; expected ('accuracy',) of a table of students")
  runs = train_seeds(config, folder)
  found: dict[str, list[dict[str, float]]] = {name: [] for name in config.run}
  teachers = {name for stage in config.run for name in teacher_names(config.stages[stage])}
  teacher_logits: dict[str, np.ndarray] = {}
  for index, (run, done) in enumerate(runs):
    once = set(config.shared) if index else set()  # one model for all seeds, judged with the first
    for name in teachers - once:
      teacher = models.load(name, model_code(config))[0] if name.endswith(FILE) else done[name]
      teacher_logits[name] = models.predict(teacher, run.data.test.images)
    for name in config.run:
      row = (
        judge(name, run.config, done, teacher_logits, run.data.validation, run.data.test) if name not in once else None
      )
      found[name].append(row or found[name][0])
  stages = [{"name": name, **{key: [row[key] for row in rows] for key in rows[0]}} for name, rows in found.items()]
  return {
    "title": title,
    "config": spec,
    "train": len(runs[0][0].data.train.labels),
    "examples": len(runs[0][0].data.test.labels),
    "seeds": [run.config.seed for run, _ in runs],
    "shared": list(config.shared),
    "against": against,
    "environment": environment(),
    "stages": stages,
  }


def judge(
  name: str,
  config: Experiment,
  done: Mapping[str, Trained],
  teacher_logits: Mapping[str, np.ndarray],
  validation: Split,
  test: Split,
) -> dict[str, float]:
  """Returns a stage's figures on the test split (see `COLUMNS`), and its validation accuracy.

  Args:
    name: the stage.
    config: the experiment.
    done: the models of its stages.
    teacher_logits: each teacher's logits of the test split.
    validation: where biases are matched to the prior.
    test: the split that is judged on.
  """
  stage = config.stages[name]
  logits = models.predict(done[name], test.images)
  held_out = models.predict(done[name], validation.images)
  row = {
    "accuracy": engine.accuracy(logits, test.labels),
    "validation": engine.accuracy(held_out, validation.labels),
    "calibration": engine.calibration_error(logits, test.labels),
  }
  missing = _missing(stage, len(test.classes))
  if missing:
    prior = float(np.mean(np.isin(validation.labels, missing)))
    shift = match_prior(held_out, missing, prior)
    moved = logits + shift * np.isin(np.arange(logits.shape[-1]), missing)
    row |= {"matched": engine.accuracy(moved, test.labels), "shift": shift}
  teachers = teacher_names(stage)
  target = (
    teacher_outputs.logits_as_one([teacher_logits[one] for one in teachers], stage) if teachers else logits[:, :0]
  )
  if target.shape == logits.shape:  # of a teacher of other classes activations alone are read
    row |= {
      "agreement": engine.agreement(logits, target),
      "agreement_5": engine.agreement(logits, target, 5),
      "divergence": engine.divergence(logits, target),
    }
  return row


def _missing(stage: Stage, classes: int) -> list[int]:
  """Returns the classes of which a stage has seen no example."""
  seen = set(stage.examples.only or range(classes)) - set(stage.examples.without)
  return sorted(set(range(classes)) - seen)


def match_prior(logits: np.ndarray, classes: Sequence[int], prior: float) -> float:
  """Returns the offset of the logits of some classes that makes their mean probability the prior.

  The labels are not used beyond the prior: this is how a student of a transfer set without some classes gets its biases
  (Hinton et al., arXiv:1503.02531, section 3, chose them on the test set).

  Args:
    logits: (examples, classes) of examples of all classes.
    classes: those whose logits are moved.
    prior: the share of examples of these classes, between 0 and 1.
  """
  low, high = -100.0, 100.0
  for _ in range(60):
    shift = (low + high) / 2
    moved = np.array(logits, np.float64)
    moved[:, classes] += shift
    p = np.exp(moved - moved.max(-1, keepdims=True))
    mass = float(np.mean(p[:, classes].sum(-1) / p.sum(-1)))
    low, high = (shift, high) if mass < prior else (low, shift)
  return (low + high) / 2


def markdown(table: Mapping[str, Any]) -> str:
  """Returns the table of `students` as Markdown."""
  columns = [column for column in COLUMNS if any(column.key in stage for stage in table["stages"])]
  against = next((stage for stage in table["stages"] if stage["name"] == table["against"]), None)
  heads = ["stage", columns[0].head, *([f"minus {table['against']}"] if against else [])]
  heads += [column.head for column in columns[1:]]
  lines = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
  for stage in table["stages"]:
    cells = [stage["name"], _mean(stage, columns[0])]
    if against:
      gaps = np.subtract(stage["accuracy"], against["accuracy"])
      mean, half = interval(gaps)
      once = stage is against or stage["name"] in table["shared"]
      cells.append("" if once else f"{100 * mean:+.2f} ± {100 * half:.2f}")
    cells += [_mean(stage, column) for column in columns[1:]]
    lines.append(f"| {' | '.join(cells)} |")
  machine = table["environment"]
  once = f"; {', '.join(table['shared'])}: one run for all seeds" if table["shared"] else ""
  lines += [
    "",
    f"{len(table['seeds'])} seeds{once}; {table['train']:,} training and {table['examples']:,} test examples, last"
    f" epoch, 95 % intervals of Student's t over the seeds{', differences paired by seed' if against else ''}. Run on"
    f" {machine['processor']}, {machine['cores']} cores, {machine['devices']}, jax {machine['versions']['jax']}.",
  ]
  return "\n".join(lines)


def _mean(stage: Mapping[str, Any], column: Column) -> str:
  values = stage.get(column.key)
  if values is None:
    return ""
  mean, half = interval(values)
  digits = 2 if column.factor == 100.0 else 3
  shown = f"{column.factor * mean:.{digits}f}"
  return shown if len(set(values)) == 1 else f"{shown} ± {column.factor * half:.{digits}f}"
