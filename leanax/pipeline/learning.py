"""How a stage learns: its step, the state before the first one and the norms of its terms, of one student or peers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import kd
from leanax import engine
from leanax.core import keys
from leanax.engine.train import forward, mutual, seeds, together
from leanax.engine.train.state import TrainState
from leanax.graph.edits import replace_head
from leanax.pipeline import assembling, build, schema, teaching
from leanax.pipeline import trained as models
from leanax.pipeline.trained import Trained


class Learning(NamedTuple):
  """What is trained, and by which function.

  Attributes:
    step: the train step.
    state: the state before the first one; of peers (`engine.train.mutual`) all, on a leading axis.
    objective: what is minimised.
    norm: `engine.term_norm` of it.
    peers: how many students there are.
    begun: the model before the first step.
    plan: how the student is put together anew when it is evaluated or left, where a loss wants that.
  """

  step: Callable[..., Any]
  state: TrainState
  objective: kd.Weighted
  norm: Callable[..., jax.Array]
  peers: int
  begun: Trained
  plan: assembling.Plan | None = None

  def left(self, state: TrainState) -> Trained:
    """What is evaluated and left of a state: its averages if it has some, and the first of several peers."""
    state = (seeds.pick(state, 0) if self.peers > 1 else state).averaged
    recipe, variables = self.begun.recipe, state.variables
    if self.plan is not None:
      variables = replace_head.joined(variables, self.plan.edit, self.plan.params(state.aux, state.aux_state))
      recipe = recipe._replace(edits=(*recipe.edits, self.plan.edit))
    return Trained(recipe, variables, state.qparams, state.quant_state)


class Beside(NamedTuple):
  """A teacher that is trained in its student's steps (`engine.train.together`).

  Attributes:
    name: the entry of `stages` that describes it.
    begun: its model before the first step.
    forward: its function in training.
  """

  name: str
  begun: Trained
  forward: forward.Forward


def make(
  name: str,
  config: Any,
  begun: Sequence[Trained],
  student: forward.Forward,
  objective: kd.Weighted,
  taught: teaching.Teaching,
  taught_by: Sequence[Trained],
  batches: int,
  beside: Beside | None = None,
) -> Learning:
  """Puts a stage's parts together.

  Args:
    name: the stage's.
    config: the experiment's.
    begun: the model before the first step, or each of its peers.
    student: its function, tapped as the objective needs it.
    objective: what one student minimises.
    taught: its teacher.
    taught_by: the models behind it.
    batches: of the stage.
    beside: a teacher that is trained in the same steps, if there is one.
  """
  stage = config.stages[name]
  if beside is not None:
    taught = _outputs_now(taught, beside, objective, config.seed)
  tx = build.transformation(name, stage, batches, lambda: models.stacked_axes(begun[0].recipe, begun[0].variables))
  objective = mutual.Mutual(objective.terms) if len(begun) > 1 else objective
  teacher = taught.teacher if beside is None else together.current
  about: Any = {"teacher": teacher, "itself": stage.teacher == schema.ITSELF}
  about |= {"accumulate": stage.optimizer.accumulate, "per_device_statistics": stage.per_device_statistics}
  norm = engine.term_norm(student, objective, **about)
  aux, aux_state, plan = _started(config.seed, stage, student, objective, begun[0], taught, taught_by)
  more: Any = {"ema": stage.optimizer.ema or None, "average_aux": plan is not None}
  init, step = engine.training(student, objective, tx, **about, **more)
  states = [
    init(one.variables, qparams=one.qparams, quant_state=one.quant_state, aux=aux, aux_state=aux_state) for one in begun
  ]
  if beside is not None:
    step, norm, states = _with_its_teacher(config, stage, objective, batches, beside, step, norm, states)
  if len(begun) == 1:
    return Learning(step, states[0], objective, norm, 1, begun[0], plan)
  count = len(begun)
  return Learning(
    mutual.together(step, count), seeds.stack(states), objective, mutual.mean(norm, count), count, begun[0]
  )


def _outputs_now(taught: teaching.Teaching, beside: Beside, objective: kd.Weighted, seed: int) -> teaching.Teaching:
  """What losses are made for: the outputs of a teacher that is trained beside its student, before the first step."""
  apply, key = forward.tapped(beside.forward, objective.teacher), keys.step_key(seed, 0, "teacher")

  def teacher(variables: Any, x: jax.Array) -> Any:
    return apply(variables, {}, {}, x, train=True, key=key, axis_name=None)[0]

  return taught._replace(teacher=teacher, variables=beside.begun.variables)


def _with_its_teacher(
  config: Any,
  stage: Any,
  objective: kd.Weighted,
  batches: int,
  beside: Beside,
  step: Callable[..., Any],
  norm: Callable[..., jax.Array],
  states: Sequence[TrainState],
) -> tuple[Callable[..., Any], Callable[..., jax.Array], list[TrainState]]:
  """Puts the teacher into the step, the norms of the terms and the states of its student."""
  entry, (recipe, variables) = config.stages[beside.name], beside.begun[:2]
  tx = build.transformation(beside.name, entry, batches, lambda: models.stacked_axes(recipe, variables))
  own = build.objective(beside.name, entry.objective.to_dict(), max(batches // entry.optimizer.accumulate, 1))
  more: Any = {"accumulate": entry.optimizer.accumulate, "per_device_statistics": stage.per_device_statistics}
  init, of_teacher = engine.training(beside.forward, own, tx, **more)
  begun = init(variables)
  read = forward.tapped(beside.forward, objective.teacher)
  every = [together.start(state, begun) for state in states]
  return together.together(step, of_teacher, read), together.taught(norm, read), every


def _started(
  seed: int,
  stage: Any,
  student: forward.Forward,
  objective: kd.Weighted,
  trained: Trained,
  taught: teaching.Teaching,
  taught_by: Sequence[Trained],
) -> tuple[Any, Any, assembling.Plan | None]:
  """(aux, aux_state) of the losses, made for the shapes of what they read, and what becomes of them."""
  if not any(term.loss.init for term in objective.terms):
    return {}, {}, None
  x = models.example(trained.recipe, 2)
  key = keys.step_key(seed, 0, "losses")
  trees = trained.variables, trained.qparams, trained.quant_state
  mine = jax.eval_shape(lambda trees, x: student(*trees, x, train=True, key=key, axis_name=None)[0], trees, x)
  its = None
  if taught.teacher is not None:
    its = jax.eval_shape(taught.teacher, taught.variables, x)
  elif taught_by or isinstance(objective, mutual.Mutual):
    its = jax.ShapeDtypeStruct((2, len(trained.recipe.classes)), jnp.float32)
  outputs, teacher = (_outputs(mine), _outputs(its)), taught_by[0].variables if taught_by else None
  aux = objective.init(key, *outputs, teacher)
  recipe, fn = trained.recipe, models.functions(trained.recipe).fn
  folded = bool(recipe.rules) or models.is_folded(recipe)
  about = fn, recipe.image, len(recipe.classes), trained.variables, outputs, aux, teacher, stage.teacher_classes, folded
  return *aux, assembling.plan(objective, *about)


def _outputs(shapes: Any) -> Any:
  return shapes if shapes is None or isinstance(shapes, kd.Outputs) else kd.Outputs(shapes)
