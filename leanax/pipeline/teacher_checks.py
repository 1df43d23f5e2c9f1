"""Refuses teachers that a stage cannot learn from, and warns of one that is worse than its student."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import kd
from leanax.core.errors import UserError
from leanax.engine.data import Preprocess, Split
from leanax.engine.metrics import Metric, accuracy, measured
from leanax.engine.store import logit_codes
from leanax.pipeline import trained as models
from leanax.pipeline.config.experiment import ITSELF, TOGETHER, Experiment, Stage, teacher_names
from leanax.pipeline.recipe import ALL, Recipe
from leanax.pipeline.tables import measures
from leanax.pipeline.teacher_outputs import further, logits_as_one
from leanax.pipeline.trained import Trained


def check_config(name: str, config: Experiment, minimised: kd.Weighted) -> None:
  """Refuses an objective and keys for teachers that contradict each other; no model is needed.

  Raises:
    UserError: names the key.
  """
  stage = config.stages[name]
  try:
    minimised.refuse_accumulation(stage.optimizer.accumulate)
  except UserError as error:
    raise UserError(f"config key 'stages.{name}.optimizer.accumulate': {error}") from error
  if stage.teacher == ITSELF and not stage.optimizer.ema:
    raise UserError(f"config key 'stages.{name}.teacher' is 'itself', which needs 'stages.{name}.optimizer.ema'")
  compares = [term.loss.needs_teacher for term in minimised.terms]
  if stage.optimizer.name == "dot" and (all(compares) or not any(compares)):
    raise UserError(
      f"config key 'stages.{name}.optimizer.name' is 'dot', which tells a task's gradient from a teacher's; expected "
      "an objective with losses of both kinds, such as hard_labels and hinton"
    )
  if stage.peers > 1:
    _check_peers(name, config, any(compares))
  elif any(compares) and not stage.teacher:
    raise UserError(f"config key 'stages.{name}.teacher' is empty, but its objective compares with a teacher")
  elif stage.teacher and not any(compares):
    raise UserError(
      f"config key 'stages.{name}.teacher' is {stage.teacher!r}, but no loss of its objective compares with a teacher"
    )
  if stage.teacher_mode == "train" and config.parallel not in ("jit", "mesh"):
    raise UserError(
      f"config key 'stages.{name}.teacher_mode' is 'train': the teacher's statistics would be of each device's part "
      f"of the batch; expected 'parallel' to be 'jit' or 'mesh', got {config.parallel!r}"
    )


def _check_peers(name: str, config: Experiment, compares: bool) -> None:
  """Refuses peers that have another teacher, that have nothing to learn from each other, or that start alike."""
  stage = config.stages[name]
  for key, given, why in (
    ("teacher", stage.teacher, "its peers teach each other: expected none"),
    ("start", stage.start, "all peers would start alike: expected none"),
    ("cut.from", stage.cut.source, "all peers would start alike: expected none"),
    ("model", config.models[stage.model].weights and stage.model, "all peers would start alike: expected no 'weights'"),
  ):
    if given:
      raise UserError(f"config key 'stages.{name}.{key}' is {given!r}, and {why}")
  if not compares:
    raise UserError(
      f"config key 'stages.{name}.peers' is {stage.peers}; expected an objective with a loss that compares with a "
      "teacher, such as hinton with temperature 1"
    )


def check_store(name: str, stage: Stage, classes: int) -> None:
  """Refuses a form in which logits of so many classes cannot be stored.

  Args:
    name: the stage's, for errors.
    stage: its config.
    classes: logits per example.

  Raises:
    UserError: names the stage's keys.
  """
  try:
    logit_codes.fields(classes, stage.cache_form, stage.cache_top_k or None)
  except UserError as error:
    raise UserError(f"config keys 'stages.{name}.cache_form' and 'stages.{name}.cache_top_k': {error}") from error


def _reads_logits(objective: kd.Weighted) -> bool:
  """Returns whether some loss compares the teacher's logits, and not only its activations."""
  return any(term.loss.needs_teacher and not term.loss.taps.teacher for term in objective.terms)


def check(stage: Stage, recipes: Sequence[Recipe], student: Recipe, objective: kd.Weighted) -> None:
  """Refuses teachers whose inputs or classes differ from their student's.

  Args:
    stage: the stage's config.
    recipes: of its teachers.
    student: the student's.
    objective: what the student minimises.

  Raises:
    UserError: says how they differ.
  """
  if objective.teacher and not recipes:
    raise UserError(f"its objective reads {objective.teacher[0]!r} of a teacher, and 'teacher' names no other model")
  names = [stage.teacher] if stage.teacher_mode == TOGETHER else teacher_names(stage)
  if read := further(objective):
    if len(recipes) > 1 or stage.peers > 1 or stage.teacher_classes:
      raise UserError(
        f"the objective reads the output {read[0]!r} of a teacher; expected one teacher, and no 'teacher_classes'"
      )
    if recipes and not recipes[0].output:
      raise UserError(f"the objective reads the output {read[0]!r} of a teacher, and {names[0]!r} has one output")
  if student.output == ALL and (len(recipes) > 1 or stage.peers > 1 or stage.teacher_mode == TOGETHER):
    raise UserError(
      "labels are of several outputs; expected one teacher, no 'peers', and a 'teacher_mode' of 'eval' or 'train'"
    )
  for name, recipe in zip(names, recipes, strict=True):
    if _differ(recipe.preprocess, student.preprocess):
      raise UserError(f"teacher {name!r} was trained with another preprocessing than its student's; expected the same")
    if recipe.source != student.source:
      raise UserError(f"teacher {name!r} reads {recipe.source}, and its student {student.source}")
    if recipe.image != student.image:
      raise UserError(f"teacher {name!r} reads images of {recipe.image}, and its student of {student.image}")
    if stage.teacher_mode == "train" and (recipe.is_quantized or recipe.is_folded):
      raise UserError(
        f"'teacher_mode' is 'train', and teacher {name!r} is quantized or has folded batch norms, which have no "
        "training mode; expected 'eval'"
      )
    known, wanted = len(recipe.classes), len(student.classes)
    chosen = tuple(stage.teacher_classes)
    if chosen and (len(chosen) != wanted or not all(0 <= number < known for number in chosen)):
      raise UserError(
        f"'teacher_classes' is {chosen}; expected {wanted} numbers from 0 to {known - 1}: teacher {name!r}'s class for "
        "each of the student's"
      )
    if not chosen and known != wanted and _reads_logits(objective):
      raise UserError(
        f"teacher {name!r} has {known} classes and its student {wanted}; expected 'teacher_classes', the "
        "teacher's class for each of the student's, or losses that read activations only"
      )
    if not chosen and recipe.classes != student.classes and _reads_logits(objective):
      first = next(pair for pair in zip(recipe.classes, student.classes, strict=True) if pair[0] != pair[1])
      raise UserError(
        f"teacher {name!r} has the class {first[0]!r} where its student has {first[1]!r}; "
        "expected 'teacher_classes', the teacher's class for each of the student's"
      )


def warn_of_a_worse_teacher(
  name: str,
  stage: Stage,
  teachers: Sequence[Trained],
  others: Mapping[str, Trained],
  validation: Split,
  metric: Metric | None = None,
) -> str:
  """Prints a warning on stderr, and returns it, where an earlier stage of the same model beats the teachers together.

  A teacher of other classes, of which activations alone are read, cannot be worse in this sense. Accuracies are
  compared, or the values of another metric.
  """
  if not teachers or not others or not len(validation.ids):
    return ""
  metric = metric or accuracy()
  if len(teachers) > 1 and len(validation.classes) < 2:
    return ""  # the mean of their outputs depends on the loss
  found = [models.predict(one, validation.images) for one in teachers]
  outputs = found[0] if isinstance(found[0], Mapping) else logits_as_one(found, stage)
  if validation.classes and not isinstance(outputs, Mapping) and outputs.shape[-1] != len(validation.classes):
    return ""
  measure = metric.described()
  sign = measures.sign(measure)
  values = {
    other: measured(metric, models.predict(one, validation.images), validation.labels) for other, one in others.items()
  }
  best = max((sign * value, other) for other, value in values.items())
  reached = measured(metric, outputs, validation.labels)
  if sign * reached >= best[0]:
    return ""
  text = (
    f"WARNING: stage {name!r}: its teacher {stage.teacher!r} has a validation {measure['title']} of "
    f"{measures.write(measure, reached)}, and the student itself reached {measures.write(measure, sign * best[0])} in "
    f"stage {best[1]!r}: it learns from a worse teacher"
  )
  print(text, file=sys.stderr, flush=True)
  return text


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
  """Returns whether two models prepare pixels differently; a file may not say how images were resized."""
  ways = {group["resize"] for group in (one, other) if group.get("resize")}
  pair = [dataclasses.replace(Preprocess(**group), resize="") for group in (one, other)]
  return pair[0] != pair[1] or len(ways) > 1
