"""A stage's student cut out of an earlier stage's model: from the config's group `cut` to variables."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from leanax import engine, graph
from leanax.core.errors import UserError
from leanax.engine.data import Split
from leanax.engine.models import cut_student
from leanax.pipeline import trained as models
from leanax.pipeline.config.experiment import Cut, Experiment
from leanax.pipeline.trained import Recipe, Trained

KEEP = {"first": cut_student.first, "alternate": cut_student.alternate}
MEASURED = 2048  # examples on which effects are measured, at most


def cut(group: Cut, recipe: Recipe, fresh: Any, teacher: Trained, pick: cut_student.Pick) -> Any:
  """The student's variables.

  Args:
    group: a stage's `cut`.
    recipe: of the student.
    fresh: its variables; only shapes are read.
    teacher: the model that it is cut out of; its variables may be shapes where this is traced.
    pick: which blocks are kept, where it drops some.

  Raises:
    UserError: a leaf without a counterpart, or one that cannot be cut out of it.
  """
  if models.is_folded(teacher.recipe):
    raise UserError(f"'cut.from' is {group.source!r}, whose function was edited; expected a stage before that")
  layers = group.way == "layers"
  names = cut_student.counterparts(fresh, teacher.variables, pick if layers else None, tuple(group.map))
  parts = None
  if not layers:
    x = models.example(recipe)
    mine = graph.axis_parts(models.functions(recipe).fn, fresh, x)
    parts = mine, graph.axis_parts(models.functions(teacher.recipe).fn, teacher.variables, x)
  return cut_student.fill(fresh, teacher.variables, names, parts)


def picker(group: Cut, teacher: Trained, validation: Split) -> cut_student.Pick:
  """Which blocks are kept; "effect" asks for the rise of the validation loss without a block."""
  return KEEP.get(group.keep) or cut_student.by_effect(effect_of(teacher, validation))


def effect_of(teacher: Trained, validation: Split) -> Callable[[str], float]:
  """`effect(module)`: the mean cross-entropy of validation examples, at most 2048, where a module is skipped.

  A module is skipped by its parameters at zero, which a residual block passes its input through.

  Raises:
    UserError: when it is called, if nothing of the input reaches the logits without the module.
  """
  fn = models.forward(teacher.recipe)
  images, labels = validation.images[:MEASURED], validation.labels[:MEASURED]

  def effect(module: str) -> float:
    variables = cut_student.without(teacher.variables, module)
    logits = engine.logits(fn, (variables, teacher.qparams, teacher.quant_state), images)
    if len(logits) > 1 and not np.ptp(logits, axis=0).any():
      raise UserError(
        f"'cut.keep' is 'effect', but without {module!r} the teacher says the same of every image; expected residual "
        "blocks, or another 'keep'"
      )
    rows = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return float(np.mean(np.log(np.exp(rows).sum(-1)) - rows[np.arange(len(labels)), labels]))

  return effect


def check(name: str, config: Experiment, recipes: Sequence[Recipe], student: Any, teacher: Any) -> None:
  """Cuts the student on shapes alone.

  Args:
    name: of the stage.
    config: the experiment.
    recipes: of the student and of its teacher.
    student: the shapes of its variables.
    teacher: of its teacher's.

  Raises:
    UserError: as `cut`; names the stage.
  """
  group = config.stages[name].cut
  if folds(group.source, config) and "batch_stats" in teacher:
    raise UserError(
      f"stage {name!r}: 'cut.from' is {group.source!r}, whose batch norms are folded; expected a stage without 'quant'"
    )
  pick = KEEP.get(group.keep, cut_student.first)
  try:
    jax.eval_shape(lambda s, t: cut(group, recipes[0], s, Trained(recipes[1], t, {}, {}), pick), student, teacher)
  except UserError as error:
    raise UserError(f"stage {name!r}: {error}") from error


def folds(stage: str, config: Experiment) -> bool:
  """Whether a stage, or one that it goes on from, trains with quantizers."""
  given = config.stages[stage]
  return bool(given.quant.rules) or bool(given.start and folds(given.start, config))
