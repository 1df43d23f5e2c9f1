"""What can be known of an experiment before anything compiles: its models are traced on shapes, never run.

A mistake in the last stage is so found before the first one trains.
"""

import dataclasses
import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import kd
import quant
from kd.outputs import is_one
from leanax import graph
from leanax.core.errors import UserError, unknown
from leanax.engine.data import Dataset, batches
from leanax.engine.store import pretrained
from leanax.engine.train import parallel
from leanax.pipeline import assembling, build, cutting, schema, teaching, together
from leanax.pipeline import trained as models
from leanax.pipeline.stage import begin_recipe
from leanax.pipeline.trained import Recipe

INSTALLED = ("site-packages", "dist-packages", str(Path(os.__file__).parent), "<")


def check(config: Any, data: Dataset) -> dict[str, Recipe]:
  """Traces the models of all stages, and places every rule on them.

  Returns:
    The recipe of what each stage will leave, before batch norms are folded and quantizers are added.

  Raises:
    UserError: a model that cannot be called with the data's images or has other outputs than its classes, weights that
      are not the model's, a rule that matches nothing, a batch that does not fit the data or the devices, a student
      that cannot be cut out of its teacher.
  """
  if config.parallel not in parallel.MODES:
    raise unknown("parallel mode in 'parallel'", config.parallel, parallel.MODES)
  described = [together.described(config, config.stages[name]) for name in config.run]
  named = [config.stages[name].model for name in config.run] + [one.model for one in described if one is not None]
  variables = {name: model(name, config, data) for name in dict.fromkeys(named)}
  left: dict[str, Left] = {}
  for name in config.run:
    given = config.stages[name]
    begun = (
      left[given.start] if given.start else Left(begin_recipe(given.model, config, data.train), variables[given.model])
    )
    left[name] = stage(name, config, data, begun, left)
    if given.cut["from"]:
      teacher = left[given.cut["from"]]
      cutting.check(name, config, (begun.recipe, teacher.recipe), begun.variables, teacher.variables)
  return {name: one.recipe for name, one in left.items()}


class Left(NamedTuple):
  """What a stage begins with, or leaves: its recipe, and its variables as shapes."""

  recipe: Recipe
  variables: Any


def model(name: str, config: Any, data: Dataset) -> Any:
  """The shapes of a model's variables, once it is known to take the data's images and to tell their classes apart."""
  entry, recipe = config.models[name], begin_recipe(name, config, data.train)
  example = jax.ShapeDtypeStruct((1, *recipe.image), jnp.float32)
  parts = models.functions(recipe)
  try:
    variables = jax.eval_shape(lambda x: parts.model.init(jax.random.key(0), x), example)
    outputs = jax.eval_shape(parts.fn, variables, example)
  except UserError:
    raise
  except Exception as error:  # the user's code may raise anything
    raise UserError(
      f"model {name!r}, {entry.name!r} with {recipe.kwargs}, cannot be called with images of {recipe.image}: "
      f"{type(error).__name__}: {_first_line(error)}{_where(error)}"
    ) from error
  expected = (1, len(recipe.classes))
  shape = getattr(outputs, "shape", None)
  if shape != expected:
    raise UserError(
      f"model {name!r}, {entry.name!r}, gives outputs of shape {shape} for one image; expected {expected}, a logit for "
      f"each class of {config.data.name!r}"
    )
  if entry.weights:
    pretrained.load(entry.weights, variables, entry.key_map)
  return variables


def stage(name: str, config: Any, data: Dataset, begun: Left, done: Mapping[str, Left]) -> Left:
  """Places a stage's rules on its model and its batches on the data and the devices.

  Args:
    name: the stage's.
    config: the experiment.
    data: its data.
    begun: the model before the first step.
    done: what earlier stages leave.

  Returns:
    What it leaves.
  """
  given, (recipe, variables) = config.stages[name], begun
  spec = build.inputs(config, given)
  try:
    split = build.examples(config, given, data.train)
    left = _teaching(name, config, data, begun, done)
  except UserError as error:
    raise UserError(f"stage {name!r}: {error}") from error
  arrays = {"image": split.images, "label": split.labels, "id": split.ids}
  shapes: Any = {key: jax.ShapeDtypeStruct(array.shape, array.dtype) for key, array in arrays.items()}
  policy = build.policy(name, given)
  try:
    batches.check(dataclasses.replace(spec, per_view=()), shapes)
    count = build.batches(given, len(split.labels))
    if config.parallel != "jit":
      parallel.share(jax.ShapeDtypeStruct((given.batch_size,), jnp.int32), len(jax.local_devices()))
    if policy is not None:
      example = jax.ShapeDtypeStruct((1, *recipe.image), jnp.float32)
      # Folding batch norms, which needs numbers, leaves the sites that can be quantized and their names as they are.
      quant.quantize(models.functions(recipe).fn, policy).explain(variables, example)
  except UserError as error:
    raise UserError(f"stage {name!r}: {error}") from error
  tx = build.transformation(name, given, count, lambda: models.stacked_axes(recipe, variables))
  try:
    if policy is None or "batch_stats" not in variables:  # folding gives biases that no rule can be compared with here
      jax.eval_shape(tx.init, variables["params"])
  except UserError as error:
    raise UserError(f"stage {name!r}: {error}") from error
  return left


def _teaching(name: str, config: Any, data: Dataset, begun: Left, done: Mapping[str, Left]) -> Left:
  """Compares a stage's teachers with its student, and finds every activation that its losses read.

  Returns:
    What the stage leaves.
  """
  given = config.stages[name]
  student, variables = begun
  objective = build.objective(name, given.objective.to_dict(), output=student.output)
  teachers = [
    Left(*models.load(teacher, schema.model_code(config))[0][:2])
    if teacher.endswith(schema.FILE)
    else _quantized(config, teacher, done[teacher])
    for teacher in teaching.names(given)
  ]
  if teachers:
    teaching.check(given, [teacher.recipe for teacher in teachers], student, objective)
  mine, its = _outputs("student", objective.student, student, variables, not given.quant.rules), None
  beside = together.described(config, given)
  if beside is not None:
    recipe = begin_recipe(beside.model, config, data.train)
    its = _outputs("teacher", objective.teacher, recipe, models.variable_shapes(recipe), False)
  elif objective.teacher and not teachers:
    raise UserError(f"its objective reads {objective.teacher[0]!r} of a teacher, and 'teacher' names no other model")
  taught_by = None
  if teachers:
    taught_by = teachers[0].variables
    if given.teacher_mode == "train":
      _in_training(teaching.names(given)[0], *teachers[0])
    its = _outputs("teacher", objective.teacher, *teachers[0], bool(teaching.further(objective)))
    if is_one(its.logits):
      chosen = len(given.teacher_classes) or its.logits.shape[-1]
      build.check_store(name, given, chosen)
      its = its._replace(logits=jax.ShapeDtypeStruct((BATCH, chosen), its.logits.dtype))
  elif beside is None and (given.teacher or given.peers > 1):
    its = mine._replace(taps={})
  aux = _trace(objective, mine, its, taught_by)
  split = build.examples(config, given, data.train)
  for term in objective.terms:
    _masked(term, split.labels >= 0)
  folded = bool(given.quant.rules) or (cutting.folds(name, config) and "batch_stats" in variables)
  fn = models.functions(student).fn
  about = fn, student.image, len(student.classes), variables, (mine, its), aux, taught_by, given.teacher_classes, folded
  plan = assembling.plan(objective, *about)
  if plan is None:
    return begun
  whole = student._replace(edits=(*student.edits, plan.edit))
  return Left(whole, models.variable_shapes(whole))


def _quantized(config: Any, name: str, left: Left) -> Left:
  """What a stage leaves, with the rules by which it quantizes."""
  return left._replace(recipe=left.recipe._replace(rules=tuple(config.stages[name].quant.rules)))


def _masked(term: kd.Term, labelled: np.ndarray) -> None:
  """Refuses a term that counts no example of its stage, and one that reads labels where there are none."""
  counted = {"labelled": labelled, "unlabelled": ~labelled}
  if term.mask in counted and not counted[term.mask].any():
    raise UserError(f"the term {term.name!r} counts {term.mask} examples, and the stage has none")
  if "label" in term.loss.reads and term.mask != "labelled" and not labelled.all():
    raise UserError(
      f"the term {term.name!r} reads labels, which {np.sum(~labelled)} examples of the stage lack; expected "
      '"mask": "labelled"'
    )


BATCH = 4


def _outputs(whose: str, taps: Any, recipe: models.Recipe, variables: Any, every: bool) -> Any:
  """A model's outputs, every one or the logits, as shapes; a misspelt tap is answered with the nearest names."""
  parts, images = models.functions(recipe), jax.ShapeDtypeStruct((BATCH, *recipe.image), jnp.float32)

  def fn(variables: Any, x: Any) -> Any:
    if every:
      return models.outputs(parts._replace(quantized=None), (variables, {}, {}), x)
    return models.named(parts.fn(variables, x), parts) if whose == "student" else parts.fn(variables, x)

  try:
    return kd.Outputs(*jax.eval_shape(graph.taps(fn, taps), variables, images))
  except UserError as error:
    raise UserError(f"the objective's taps of the {whose}: {error}") from error


def _in_training(name: str, recipe: models.Recipe, variables: Any) -> None:
  """Refuses a teacher that cannot be run as in training without random numbers, which would be a student's."""
  net, images = models.functions(recipe).net, jax.ShapeDtypeStruct((BATCH, *recipe.image), jnp.float32)
  try:
    jax.eval_shape(lambda variables, x: net.apply(variables, x, train=True)[0], variables, images)
  except Exception as error:  # the user's code may raise anything
    raise UserError(
      f"'teacher_mode' is 'train', and teacher {name!r} cannot be run so: {type(error).__name__}: "
      f"{_first_line(error)}; a teacher with dropout can be run in mode 'eval' only"
    ) from error


def _trace(objective: kd.Weighted, student: Any, teacher: Any, teacher_variables: Any) -> Any:
  """Traces what a stage minimises on shapes: a loss that cannot compare these two networks says so now.

  Returns:
    (aux, aux_state) as shapes.
  """
  batch = {key: jax.ShapeDtypeStruct((BATCH,), jnp.int32) for key in ("label", "id")}

  def run(student: Any, teacher: Any, variables: Any, batch: Any) -> Any:
    key = jax.random.key(0)
    aux, aux_state = objective.init(key, student, teacher, variables)
    about = {"step": jnp.zeros((), jnp.int32), "aux": aux, "aux_state": aux_state, "key": key, "axis_name": None}
    return (aux, aux_state), objective(student, teacher, batch, **about)[0]

  return jax.eval_shape(run, student, teacher, teacher_variables, batch)[0]


def _first_line(error: Exception) -> str:
  return (str(error).strip() or "no reason given").splitlines()[0]


def _where(error: Exception) -> str:
  """The innermost line of the user's code, or of ours."""
  frames = traceback.extract_tb(error.__traceback__)
  own = [frame for frame in frames if not any(part in frame.filename for part in INSTALLED)]
  return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
