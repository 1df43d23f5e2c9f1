"""A stage's student cut out of an earlier stage's model: from the config's group `cut` to variables."""

from collections.abc import Callable
from typing import Any

import numpy as np

from leanax import engine, graph
from leanax.core.errors import UserError
from leanax.engine.data import Split
from leanax.engine.models import cut_student
from leanax.pipeline import trained as models
from leanax.pipeline.config.experiment import Cut
from leanax.pipeline.recipe import Recipe
from leanax.pipeline.trained import Trained

KEEP = {"first": cut_student.first, "alternate": cut_student.alternate}
MEASURED = 2048  # at most so many examples measure an effect


def cut(group: Cut, recipe: Recipe, fresh: Any, teacher: Trained, pick: cut_student.Pick) -> Any:
  """Returns the student's variables.

  Args:
    group: a stage's `cut`.
    recipe: the student's.
    fresh: the student's variables; only shapes are read.
    teacher: the model that it is cut out of; its variables may be shapes where this is traced.
    pick: which blocks are kept, where it drops some.

  Raises:
    UserError: a leaf without a counterpart, or one that cannot be cut out of it.
  """
  if teacher.recipe.is_folded:
    raise UserError(f"'cut.from' is {group.source!r}, whose batch norms are folded; expected a stage without 'quant'")
  layers = group.way == "layers"
  names = cut_student.counterparts(fresh, teacher.variables, pick if layers else None, tuple(group.map))
  parts = None
  if not layers:
    x = models.example(recipe)
    of_student = graph.axis_parts(models.functions(recipe).fn, fresh, x)
    parts = of_student, graph.axis_parts(models.functions(teacher.recipe).fn, teacher.variables, x)
  return cut_student.fill(fresh, teacher.variables, names, parts)


def picker(group: Cut, teacher: Trained, validation: Split | None) -> cut_student.Pick:
  """Returns the rule that picks the kept blocks; "effect" ranks them by the rise of the validation loss without each.

  Without validation examples, as in preparation, the first blocks are picked.
  """
  if group.keep == "effect" and validation is not None:
    return cut_student.by_effect(effect_of(teacher, validation))
  return KEEP.get(group.keep, cut_student.first)


def effect_of(teacher: Trained, validation: Split) -> Callable[[str], float]:
  """Returns `effect(module)`: the mean cross-entropy of validation examples, at most 2048, where a module is skipped.

  A module is skipped by setting its parameters to zero: a residual block then passes its input through.

  Raises:
    UserError: when it is called, if nothing of the input reaches the logits without the module.
  """
  fn = models.forward(teacher.recipe)
  images, labels = validation.images[:MEASURED], validation.labels[:MEASURED]

  def effect(module: str) -> float:
    variables = cut_student.without(teacher.variables, module)
    logits = engine.logits(fn, variables, images)
    if len(logits) > 1 and not np.ptp(logits, axis=0).any():
      raise UserError(
        f"'cut.keep' is 'effect', but without {module!r} the teacher gives every image the same logits; expected "
        "residual blocks, or another 'keep'"
      )
    rows = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return float(np.mean(np.log(np.exp(rows).sum(-1)) - rows[np.arange(len(labels)), labels]))

  return effect
