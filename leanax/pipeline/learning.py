"""The training of a stage, made from shapes alone: its step, its first state, and the model kept of its last one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import kd
import sparsity
from leanax import engine
from leanax.core import imports, keys
from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from leanax.engine.data import Input, Split
from leanax.engine.data import batches as batches_of
from leanax.engine.train import forward, mutual, seeds, together
from leanax.engine.train.freeze import frozen
from leanax.engine.train.gradient import Problem
from leanax.engine.train.parallel import AXIS
from leanax.engine.train.state import TrainState
from leanax.engine.train.step import Step
from leanax.graph.edits import replace_head
from leanax.graph.kinds import Reparam
from leanax.graph.shapes import structs
from leanax.pipeline import assembling, build, optimizers, teacher_outputs
from leanax.pipeline import trained as models
from leanax.pipeline.config.experiment import ITSELF, Stage, teacher_names
from leanax.pipeline.environment import check_memory
from leanax.pipeline.recipe import Recipe
from leanax.pipeline.trained import Functions, Trained

BATCH = 4  # of the shapes on which a stage is prepared


class Learning(NamedTuple):
  """A stage's functions of training, made from recipes and shapes.

  Attributes:
    recipe: of the model that is trained.
    teachers: the recipes of its teachers.
    step: the train step.
    create: `create(model, seed, key, teacher) -> TrainState` of one student before the first step; `seed` is of random
      masks, `key` of what the losses train, `teacher` the variables of the first teacher, also of one that is trained
      in the same steps, or None.
    objective: what is minimised.
    norm: `engine.term_norm` of it.
    peers: how many students there are.
    head: how the student is put together anew when it is evaluated or kept, where a loss wants that.
    reparam: the weights as functions of what is trained, or None.
    problem: what the step minimises, of one network that trains alone; None of several that train together.
  """

  recipe: Recipe
  teachers: tuple[Recipe, ...]
  step: Callable[..., Any]
  create: Callable[..., TrainState]
  objective: kd.Weighted
  norm: Callable[..., jax.Array]
  peers: int
  head: assembling.Plan | None
  reparam: Reparam | None
  problem: Problem | None = None

  def start(self, each: Sequence[Trained], seed: int, teacher: Any) -> TrainState:
    """Returns the state before the first step; of peers all, on a leading axis."""
    key = keys.step_key(seed, 0, "losses")
    states = [self.create(one, seed + peer * mutual.APART, key, teacher) for peer, one in enumerate(each)]
    return states[0] if self.peers == 1 else seeds.stack(states)

  def kept(self, state: TrainState, teacher: Any) -> Trained:
    """Returns what is evaluated and kept of a state: its averages if it has some, and the first of several peers."""
    return self.kept_of_one(seeds.pick(state, 0) if self.peers > 1 else state, teacher)

  def kept_of_one(self, state: TrainState, teacher: Any) -> Trained:
    """Returns the same of one student's state."""
    state = engine.deployed(state, self.reparam)
    recipe, variables = self.recipe, state.variables
    if self.head is not None:
      variables = replace_head.joined(variables, self.head.edit, self.head.params(state.aux, state.aux_state, teacher))
      recipe = recipe._replace(edits=(*recipe.edits, self.head.edit))
    return Trained(recipe, models.joined(variables, state.qparams, state.quant_state))


def make(
  name: str,
  stage: Stage,
  objective: kd.Weighted,
  model: Trained,
  teachers: Sequence[Trained],
  spec: Input,
  batches: int,
  labels: Any,
  beside: Stage | None = None,
) -> Learning:
  """Makes a stage's functions of training; nothing is compiled.

  Args:
    name: the stage's.
    stage: its config.
    objective: what one student minimises.
    model: the model before the first step; of its trees, and of those of the teachers, shapes are enough.
    teachers: the models that it learns from.
    spec: how batches are made.
    batches: of the stage.
    labels: the shapes of the training split's.
    beside: the entry that describes the only teacher, where it is trained in the same steps (`engine.train.together`).

  Raises:
    UserError: a loss that cannot compare the two networks, an activation that is not there, an optimizer or a method of
      sparsity that does not fit the parameters.
  """
  # The student with the activations that losses read, its teachers, and the shapes of what both give.
  parts = models.functions(model.recipe, half=stage.precision == "bfloat16")
  student = forward.tapped(forward_of(stage, parts), objective.student)
  moving = None if beside is None else _moving(stage, beside, objective, teachers[0], batches)
  teacher = moving.outputs if moving else teacher_outputs.function(stage, teachers, objective)
  outputs = _outputs(stage, objective, student, model, teacher, teachers)
  trees = teachers[0].variables if teachers and not moving else None  # losses keep no weights that move

  # What the losses train and remember, made for the shapes of what they read.
  def losses(key: jax.Array, teacher: Any) -> tuple[Any, Any]:
    return objective.init(key, *outputs, None if moving else teacher)

  aux = jax.eval_shape(lambda teacher: losses(jax.random.key(0), teacher), trees)
  check_memory("its objective trains and remembers", "numbers", aux)
  _trace(objective, outputs, aux, labels, spec)
  head = assembling.plan(
    objective, models.functions(model.recipe).fn, model.recipe.image, len(model.recipe.classes), model.variables,
    outputs, aux, trees, stage.teacher_classes, model.recipe.is_quantized or model.recipe.is_folded,
  )  # fmt: skip

  # The optimizer, the step and the state.
  def stacked() -> dict[str, tuple[int, ...]]:
    return models.stacked_axes(model.recipe, model.variables)

  reparam = optimizers.reparam(name, stage, stacked)
  stored = teacher_outputs.is_stored(stage, spec, objective, [] if moving else teachers)
  live: Any = {"teacher": None if stored else together.current if moving else teacher}
  live |= {"itself": stage.teacher == ITSELF, "reparam": reparam, "accumulate": stage.optimizer.accumulate}
  live["per_device_statistics"] = stage.per_device_statistics
  minimised = mutual.Mutual(objective.terms) if stage.peers > 1 else objective
  ema, freeze = stage.optimizer.ema or None, _frozen(name, stage, model)

  def training(seed: int | None = None) -> engine.Training:
    tx = optimizers.transformation(name, stage, batches, stacked, seed)
    return engine.training(student, minimised, tx, **live, ema=ema, average_aux=head is not None, freeze=freeze)

  # Random masks are drawn by the seed that the step is called with.
  step, norm = training().step, engine.term_norm(student, minimised, **live)

  def create(one: Trained, seed: int, key: jax.Array, teacher: Any) -> TrainState:
    aux, aux_state = losses(key, teacher) if any(term.loss.init for term in objective.terms) else ({}, {})
    state = training(seed).init(one.variables, aux=aux, aux_state=aux_state)
    _check_pruned(name, stage, state)
    return together.start(state, moving.init(teacher)) if moving else state

  problem = None if moving or stage.peers > 1 else Problem(student, minimised, **live)
  if moving:
    step, norm = together.together(step, moving.step, moving.forward), together.with_teacher(norm, moving.forward)
  if stage.peers > 1:
    step, norm = mutual.together(step, stage.peers), mutual.mean(norm, stage.peers)
  recipes = tuple(one.recipe for one in teachers)
  return Learning(model.recipe, recipes, step, create, minimised, norm, stage.peers, head, reparam, problem)


def _frozen(name: str, stage: Stage, model: Trained) -> tuple[str, ...]:
  """Returns the patterns of the leaves that a stage freezes, once they match the model's."""
  try:
    frozen(stage.freeze, model.variables)
  except UserError as error:
    raise UserError(f"config key 'stages.{name}.freeze': {error}") from error
  return stage.freeze


def _check_pruned(name: str, stage: Stage, state: TrainState) -> None:
  """Refuses a frozen leaf that the stage's sparsity is to prune; one whose zeros are held stays as it is."""
  if not stage.freeze or stage.sparsity.get("name") in ("hold", "", None):
    return
  masks = sparsity.masks(state.opt_state)
  pruned = frozen(stage.freeze, state.variables) & named_leaves(masks["params"]).keys()
  if pruned:
    raise UserError(
      f"config key 'stages.{name}.freeze' holds {min(pruned)!r}, which 'stages.{name}.sparsity' prunes; expected "
      "'rules' there that leave it out"
    )


class _Moving(NamedTuple):
  """A teacher that is trained in the steps of its student.

  Attributes:
    init: from its variables to its state.
    step: its own train step.
    forward: its function, with the activations that the student's losses read.
  """

  init: Callable[[Any], TrainState]
  step: Step
  forward: forward.Forward

  def outputs(self, trees: Any, x: Any) -> Any:
    """Returns what its student's losses read, as `teacher_outputs.Teacher`; on shapes only, for the key is fixed."""
    return self.forward(*models.trees(trees[0]), x, train=True, key=jax.random.key(0), axis_name=None)[0]


def _moving(stage: Stage, entry: Stage, student: kd.Weighted, model: Trained, batches: int) -> _Moving:
  """Returns the teacher of a stage that trains it, as `entry` describes it; `student` is what the stage minimises."""
  name, recipe = stage.teacher, model.recipe
  tx = optimizers.transformation(name, entry, batches, lambda: models.stacked_axes(recipe, model.variables))
  own = build.objective(name, entry.objective, max(batches // entry.optimizer.accumulate, 1))
  apply = forward_of(entry, models.functions(recipe, half=entry.precision == "bfloat16"))
  shared: Any = {"accumulate": entry.optimizer.accumulate, "per_device_statistics": stage.per_device_statistics}
  init, step = engine.training(apply, own, tx, **shared, freeze=_frozen(name, entry, model))
  return _Moving(init, step, forward.tapped(apply, student.teacher))


def leaves(learning: Learning, model: Trained, teachers: Sequence[Trained]) -> Trained:
  """Returns what a stage leaves, with shapes for trees; the optimizer and its sparsity are started on shapes."""
  trees = teachers[0].variables if teachers else None
  found: list[Recipe] = []

  def kept(model: Trained, teacher: Any) -> Any:
    state = learning.create(model, 0, jax.random.key(0), teacher)
    recipe, variables = learning.kept_of_one(state, teacher)
    found.append(recipe)
    return variables

  variables = jax.eval_shape(lambda own, teacher: kept(Trained(model.recipe, own), teacher), model.variables, trees)
  return Trained(found[0], variables)


def forward_of(stage: Stage, parts: Functions) -> forward.Forward:
  """Returns the student's forward function in training: the model with its edits and grids."""
  apply = parts.net.apply
  if parts.edited and parts.output:

    def apply(variables: Any, x: jax.Array, **mode: Any) -> tuple[Any, Any]:
      logits, state = parts.net.apply(variables, x, **mode)
      return models.named(logits, parts), state

  half = stage.precision == "bfloat16" and not parts.quantized  # a quantized net has half products of its own
  return forward.plain(forward.bfloat16(apply) if half else apply)


def check_masks(objective: kd.Weighted, split: Split) -> None:
  """Refuses a term that counts no example of its stage, and one that reads labels where there are none."""
  for term in objective.terms:
    labels = split.labels.get(term.output) if isinstance(split.labels, Mapping) else split.labels
    if labels is None:  # whether there is such an output is asked on shapes
      continue
    labelled = np.ones(labels.shape, bool) if labels.dtype.kind == "f" else labels >= 0
    counted = {"labelled": labelled, "unlabelled": ~labelled}
    if term.mask in counted and not counted[term.mask].any():
      raise UserError(f"the term {term.name!r} counts {term.mask} examples, and the stage has none")
    if "label" not in term.loss.reads:
      continue
    known = labelled if term.ignore_label is None else labelled | (labels == term.ignore_label)
    if term.mask != "labelled" and not known.all():
      raise UserError(
        f"the term {term.name!r} reads labels, which {np.sum(~known)} examples of the stage lack; expected "
        '"mask": "labelled"'
      )
    several = len(split.classes) > 1 and labels.ndim > 1  # 0 and 1 of a single output are no classes
    other = labelled & (labels >= len(split.classes)) if several else np.zeros(1, bool)
    if other.any() and (first := labels[other][0]) != term.ignore_label:
      count, row = int(np.sum(other)), int(np.argwhere(other)[0, 0])
      raise UserError(
        f"the term {term.name!r} reads labels from 0 to {len(split.classes) - 1}, and {count:,} "
        f"position{'s have' if count != 1 else ' has'} the label {first}, which is no class: first in example {row} of "
        f"{split.name!r}, counted from 0; expected labels of classes, or more classes; where it says that "
        f'there is no class, "ignore_label": {first}'
      )


def _outputs(
  stage: Stage,
  objective: kd.Weighted,
  student: forward.Forward,
  model: Trained,
  teacher: teacher_outputs.Teacher | None,
  teachers: Sequence[Trained],
) -> tuple[kd.Outputs, kd.Outputs | None]:
  """Returns the outputs of the student in training and of its teacher, as shapes.

  Raises:
    UserError: an activation that is not there (the nearest is named), or a teacher that cannot run in its mode.
  """
  x = models.example_shape(model.recipe, BATCH)

  def trained(variables: Any, x: Any) -> Any:
    return student(*models.trees(variables), x, train=True, key=jax.random.key(0), axis_name=None)[0]

  try:
    own = _as_outputs(_on_axis(trained, structs(model.variables), x))
  except UserError as error:
    raise (UserError(f"the objective's taps of the student: {error}") if objective.student else error) from error
  except Exception as error:  # the user's code may raise anything
    raise UserError(f"its model {model.recipe.name!r} cannot be run in training: {imports.failure(error)}") from error
  if teacher is None:  # a peer, or the average of its own weights
    return own, own._replace(taps={}) if stage.teacher or stage.peers > 1 else None
  trees = [structs(one.variables) for one in teachers]
  try:
    return own, _as_outputs(_on_axis(teacher, trees, x))
  except UserError as error:
    raise UserError(f"the objective's taps of the teacher: {error}") from error
  except Exception as error:  # the user's code may raise anything
    if stage.teacher_mode != "train":
      raise
    raise UserError(
      f"'teacher_mode' is 'train', and teacher {teacher_names(stage)[0]!r} cannot be run so: {type(error).__name__}: "
      f"{imports.first_line(error)}; a teacher with dropout can be run in mode 'eval' only"
    ) from error


def _on_axis(fn: Callable[..., Any], *args: Any) -> Any:
  """Returns the shapes of what `fn` gives where the device axis has a name: a model may take statistics over it."""
  count = jax.ShapeDtypeStruct((1,), jnp.int32)
  run = jax.vmap(lambda _, *args: fn(*args), in_axes=(0, *[None] * len(args)), axis_name=AXIS)
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), jax.eval_shape(run, count, *args))


def _as_outputs(shapes: Any) -> kd.Outputs:
  return shapes if isinstance(shapes, kd.Outputs) else kd.Outputs(shapes)


def _trace(objective: kd.Weighted, outputs: tuple[Any, Any], aux: tuple[Any, Any], labels: Any, spec: Input) -> None:
  """Traces what a stage minimises on shapes: a loss that cannot compare these two networks raises here.

  Raises:
    UserError: also what a user's own loss raises, with its line.
  """
  labels = jax.tree.map(lambda label: jax.ShapeDtypeStruct((BATCH, *label.shape[1:]), label.dtype), labels)
  batch = {**batches_of.targets(labels), "id": jax.ShapeDtypeStruct((BATCH,), jnp.int32)}
  if spec.augment.mixup:
    batch |= {"mix": jax.ShapeDtypeStruct((BATCH,), jnp.float32), "mix_label": labels}

  def run(student: Any, teacher: Any, aux: Any, batch: Any) -> Any:
    more = {"step": jnp.zeros((), jnp.int32), "aux": aux[0], "aux_state": aux[1], "key": jax.random.key(0)}
    return objective(student, teacher, batch, **more, axis_name=None)[0]

  try:
    jax.eval_shape(run, *outputs, aux, batch)
  except UserError:
    raise
  except Exception as error:  # a user's own loss may raise anything
    raise UserError(f"its objective cannot be computed: {imports.failure(error)}") from error
