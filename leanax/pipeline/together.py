"""A stage whose teacher is trained in its own steps (`teacher_mode: "together"`), and the entry that describes it."""

import kd
from leanax.core.errors import UserError
from leanax.pipeline import build
from leanax.pipeline.config import references
from leanax.pipeline.config.experiment import TOGETHER, Experiment


def check(name: str, config: Experiment, student: kd.Weighted) -> None:
  """Refuses a stage that trains its teacher but names no teacher that can be trained in this way.

  Args:
    name: the stage; with another `teacher_mode` than "together" nothing is refused.
    config: the experiment.
    student: what its student minimises.

  Raises:
    UserError: names the key and what was expected.
  """
  stage = config.stages[name]
  if stage.teacher_mode != TOGETHER:
    return
  key = f"config key 'stages.{name}.teacher'"
  why = f"which 'stages.{name}.teacher_mode', 'together', trains beside the student"
  if stage.teacher not in config.stages:
    raise UserError(
      f"{key} is {stage.teacher!r}; expected an entry of 'stages' with the teacher's model, objective and optimizer, "
      f"{why}"
    )
  if stage.teacher_classes:
    raise UserError(
      f"config key 'stages.{name}.teacher_classes' is {tuple(stage.teacher_classes)}; expected none of a teacher {why}"
    )
  entry = config.stages[stage.teacher]
  references.check_stage(stage.teacher, config, [])
  for inner, given, plain in (
    ("kind", entry.kind, "train"),
    ("start", entry.start, ""),
    ("cut.from", entry.cut.source, ""),
    ("teacher", entry.teacher, ""),
    ("peers", entry.peers, 1),
    ("patience", entry.patience, 0),
    ("sparsity.name", entry.sparsity.get("name", ""), ""),
    ("reparam.name", entry.reparam.get("name", ""), ""),
    ("quant.rules", tuple(entry.quant.rules), ()),
    ("optimizer.ema", entry.optimizer.ema, 0.0),
    ("optimizer.accumulate", entry.optimizer.accumulate, stage.optimizer.accumulate),
    ("per_device_statistics", entry.per_device_statistics, stage.per_device_statistics),
  ):
    if given != plain:
      raise UserError(
        f"config key 'stages.{stage.teacher}.{inner}' is {given!r}; expected {plain!r} of a teacher {why}"
      )
  if config.models[entry.model].output:
    raise UserError(f"config key 'models.{entry.model}.output' is given; expected one output of a teacher {why}")
  _check_objectives(name, student, build.objective(stage.teacher, entry.objective))


def _check_objectives(name: str, student: kd.Weighted, teacher: kd.Weighted) -> None:
  """Refuses losses that keep weights of a teacher that is being trained, and teachers that train more than weights."""
  for term in student.terms:
    if term.loss.head is not None:
      raise UserError(
        f"stage {name!r}: the loss of term {term.name!r} keeps its teacher's classifier, and 'teacher_mode' is "
        "'together': the teacher is trained; expected 'eval' or 'train', or another loss"
      )
  for term in teacher.terms:
    if term.loss.needs_teacher or term.loss.init is not None or term.loss.taps.student:
      raise UserError(
        f"stage {name!r}: the term {term.name!r} of its teacher reads more than logits and labels, and 'teacher_mode' "
        "is 'together'; expected losses such as hard_labels"
      )
