"""The one train step: a pure function from a state and a batch to the next state and its metrics."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

import kd
from kd.counting import batch_mean, counted, whole
from kd.objective import Objective, Weighted, is_objective
from kd.outputs import as_outputs, is_one, picked
from leanax.core import axis, keys
from leanax.core.errors import UserError
from leanax.engine.train import optim
from leanax.engine.train.average import average
from leanax.engine.train.counting import filled, refuse_unknown_counts
from leanax.engine.train.forward import Forward
from leanax.engine.train.state import TrainState, check_decay
from leanax.engine.train.statistics import refuse_local_statistics

Metrics = dict[str, Array]
Step = Callable[..., tuple[TrainState, Metrics]]

ITSELF = "the teacher is the student itself with the averages of its weights, and there are none; expected 'ema'"


class Training(NamedTuple):
  """A pair of functions, as in optax: the state that `init` makes is the one that `step` moves.

  Attributes:
    init: `init(variables, *, qparams=None, quant_state=None, aux=None, aux_state=None) -> TrainState`, the state before
      the first step: the variables of the model, {"params": ..., other collections}, trained scales of a quantized
      model and its other state, and what the losses train and remember, by term name.
    step: `step(state, batch, teacher_variables=None, *, axis_name=None, seed=seed) -> (state, metrics)`, pure. The
      batch is {"image", "label", ...}; under an axis it is this device's equal share, and states and metrics are the
      same on all devices.
  """

  init: Callable[..., TrainState]
  step: Step


def training(
  forward: Forward,
  objective: Objective,
  tx: optax.GradientTransformation,
  *,
  teacher: Callable[[Any, Array], Array | kd.Outputs] | None = None,
  itself: bool = False,
  ema: float | None = None,
  average_aux: bool = False,
  accumulate: int = 1,
  seed: int = 0,
  per_device_statistics: bool = False,
) -> Training:
  """Puts a model, an objective and an optimizer together.

  Args:
    forward: the student; see `engine.forward`.
    objective: see `kd.objective`.
    tx: the optimizer over {"params", "qparams", "aux"}. A transformation that prunes is its outermost part. One that
      wants it (`kd.dot`) also gets `task`, the gradient of the terms without a teacher, for another backward pass.
    teacher: `teacher(teacher_variables, image) -> logits`. Without one, `batch["teacher_logits"]` is used where it is
      there.
    itself: the teacher is the student with the averages of its own weights, `ema`, in evaluation mode.
    ema: decay of the averages kept in `state.ema`, or None for no averages.
    average_aux: average what the losses train and remember too, where the student is deployed with it.
    accumulate: micro-batches per update; `state.step` counts batches, the optimizer's `step` updates. A loss that is
      `relational` would see micro-batches in place of the batch, so it is refused where there are several.
    seed: of dropout and of the losses' randomness.
    per_device_statistics: allow a model whose batch statistics are each device's own; they are averaged after the step.

  Raises:
    UserError: the teacher is the student itself and there are no averages, or another teacher; or `ema` is no decay.
  """
  if not is_objective(objective):
    shown = getattr(objective, "__name__", type(objective).__name__)
    raise UserError(f"the objective of engine.training is {shown}; expected one of terms, as kd.weighted gives")
  check_decay(ema)
  if itself and teacher is not None:
    raise UserError("the teacher is the student itself, and there is another; expected one of them")
  if itself and ema is None:
    raise UserError(ITSELF)
  tx = optim.accumulated(tx, accumulate)
  if isinstance(objective, Weighted):
    objective.refuse_accumulation(accumulate)

  def init(variables, *, qparams=None, quant_state=None, aux=None, aux_state=None):
    if not isinstance(variables, Mapping) or "params" not in variables:
      given = ", ".join(map(repr, variables)) if isinstance(variables, Mapping) else f"a {type(variables).__name__}"
      raise UserError(f"a model's variables are {given or 'nothing'}; expected {{'params': tree, ...}}")
    trained = {"params": variables["params"], "qparams": qparams or {}, "aux": aux or {}}
    model_state = {name: tree for name, tree in variables.items() if name != "params"}
    kept = {"model_state": model_state, "quant_state": quant_state or {}, "aux_state": aux_state or {}}
    names = ("params", "qparams", "model_state", *(("aux", "aux_state") if average_aux else ()))
    averages = None if ema is None else jax.tree.map(jnp.copy, {name: (trained | kept)[name] for name in names})
    return TrainState(step=jnp.zeros((), jnp.int32), **trained, **kept, opt_state=tx.init(trained), ema=averages)

  def step(state, batch, teacher_variables=None, *, axis_name=None, seed=seed):
    optim.check_order(state.opt_state)
    if (state.ema is None) != (ema is None):  # averages that nothing moves are plausible and wrong
      raise UserError(f"this training has ema {ema}, and the state is of another; expected one of the same training")
    batch = filled(batch)
    key = keys.step_key(seed, state.step, "step")
    # The batch is made once: fused into each of its readers its pixels could be rounded otherwise for one than another.
    batch = jax.lax.optimization_barrier(batch)
    of_itself = own_averages(forward, state, key, axis_name) if itself else None
    taught = teacher_outputs(of_itself or teacher, () if itself else teacher_variables, batch)
    run = in_training(forward, key, axis_name)
    loss_of = minimised(run, objective, state, taught, batch, accumulate=accumulate, key=key, axis_name=axis_name)
    if axis_name is not None and not per_device_statistics:
      refuse_local_statistics(run, state.variables, state.qparams, state.quant_state, batch["image"])
    shared = vary(state.trained, axis_name)
    grads, (model_state, quant_state, aux_state, metrics) = jax.grad(loss_of, has_aux=True)(shared)
    grads, metrics = axis.pmean((grads, metrics), axis_name)
    if per_device_statistics:
      model_state = axis.pmean(model_state, axis_name)

    count = {"step": state.step // accumulate, "micro": state.step % accumulate}
    task = {}
    if kd.wants_task(state.opt_state):
      task = {"task": axis.pmean(jax.grad(task_of(loss_of, objective, count["step"]))(shared), axis_name)}
    updates, opt_state = tx.update(grads, state.opt_state, state.trained, **count, **task)
    trained: Any = optax.apply_updates(state.trained, updates)
    kept = {"model_state": model_state, "quant_state": quant_state, "aux_state": aux_state}
    averages = average(state.ema, {**trained, **kept}, ema, accumulate, **count)
    state = state.replace(step=state.step + 1, **trained, **kept, opt_state=opt_state, ema=averages)
    return state, {**metrics, "grad_norm": optax.tree.norm(grads)}

  return Training(init, step)


def in_training(forward: Forward, key: Array, axis_name: str | None) -> Callable[..., tuple[Any, Any, Any]]:
  """`run(variables, qparams, quant_state, x)`: the student as the step runs it, with the step's randomness."""

  def run(*args):
    return forward(*args, train=True, key=_device_key(key, axis_name), axis_name=axis_name)

  return run


def minimised(
  run: Callable[..., tuple[Any, Any, Any]],
  objective: Objective,
  state: TrainState,
  taught: kd.Outputs | None,
  batch: Mapping[str, Any],
  *,
  accumulate: int,
  key: Array,
  axis_name: str | None,
) -> Callable[[Any], tuple[Array, tuple[Any, Any, Any, Metrics]]]:
  """`loss_of(trained) -> (loss, (model_state, quant_state, aux_state, metrics))` of a batch.

  Args:
    run: of `in_training`.
    objective: as of `training`.
    state: everything that is not trained is taken from it.
    taught: what the teacher says of the batch.
    batch: see `Training`.
    accumulate: micro-batches an update.
    key: of the step.
    axis_name: the device axis, or None.
  """
  if isinstance(objective, Weighted):
    refuse_unknown_counts(batch, [term.counted(batch) for term in objective.terms], accumulate)

  def loss_of(trained):
    variables = {"params": trained["params"], **state.model_state}
    student, model_state, quant_state = run(variables, trained["qparams"], state.quant_state, batch["image"])
    student = as_outputs(student)
    about = {"aux": trained["aux"], "aux_state": state.aux_state}
    about |= {"step": state.step // accumulate, "key": key, "axis_name": axis_name}
    loss, aux_state, logs = objective(student, taught, batch, **about)
    return loss, (
      model_state,
      quant_state,
      aux_state,
      {"loss": loss, **_accuracy_of(objective, student, batch, axis_name), **logs},
    )

  return loss_of


def _accuracy_of(objective: Objective, student: kd.Outputs, batch: Mapping[str, Any], axis_name: str | None) -> Metrics:
  """The accuracy of the output that an objective names, or of the only one."""
  if not isinstance(objective, Weighted):
    return accuracy(student.logits, batch, axis_name)
  skipped = [term.ignore_label for term in objective.terms if term.ignore_label is not None]
  named = objective.output and not is_one(student.logits)
  main = picked(student, objective.output, objective.terms[0].loss, "the objective") if named else student
  return accuracy(main.logits, batch, axis_name, skipped[0] if skipped else None)


def task_of(loss_of: Callable[..., Any], objective: Objective, step: Array) -> Callable[[Any], Array]:
  """The part of a loss that is of the terms without a teacher; the forward passes of both are compiled as one."""
  if not isinstance(objective, Weighted):
    raise UserError("the optimizer wants the task's gradient: expected an objective of terms, as kd.weighted gives")
  return lambda trained: objective.task(loss_of(trained)[1][3], step)


def own_averages(forward: Forward, state: TrainState, key: Array, axis_name: str | None) -> Callable[[Any, Array], Any]:
  """The student with the averages of its own weights, in evaluation mode, as a teacher; it needs no variables.

  Raises:
    UserError: there are no averages: it would agree with itself, which is a loss of 0 with gradient 0.
  """
  if state.ema is None:
    raise UserError(ITSELF)
  now = state.averaged

  def teacher(_, x):
    args = now.variables, now.qparams, now.quant_state
    return forward(*args, x, train=False, key=key, axis_name=axis_name)[0]

  return teacher


def teacher_outputs(teacher: Callable | None, variables: Any, batch: Mapping[str, Any]) -> kd.Outputs | None:
  """What the teacher says of a batch: run now, or read from the batch, never both.

  Raises:
    UserError: the batch has cached logits and there is a teacher to run as well.
  """
  cached = batch.get("teacher_logits")
  if teacher is not None and cached is not None:
    raise UserError("the batch holds 'teacher_logits' and there is a teacher to run: expected one of them")
  if teacher is not None:
    if variables is None:
      raise UserError("the step has a teacher and got no teacher_variables")
    cached = teacher(variables, batch["image"])
  if cached is None:
    return None
  # Behind a barrier: the compiler must not fuse the teacher, or a look-up of what it gave, into the loss with another
  # rounding, so that training from stored logits has the bits of training with the running teacher.
  cached = jax.lax.optimization_barrier(jax.lax.stop_gradient(cached))
  return as_outputs(cached)


def accuracy(logits: Any, batch: Mapping[str, Any], axis_name: str | None, ignored: int | None = None) -> Metrics:
  """The share of the labelled examples, or positions, whose largest logit is their label's.

  One logit, or labels of the logits' own shape, say yes or no: a logit above 0 is yes.

  Args:
    logits: (batch, *positions, classes).
    batch: with "label", of whole numbers, (batch, *positions) or as the logits.
    axis_name: the device axis, or None.
    ignored: a label that does not count.

  Returns:
    {"accuracy": ...}, or nothing where the labels are no classes of these outputs.
  """
  label = batch.get("label")
  if label is None or not is_one(logits) or not (label.dtype == bool or jnp.issubdtype(label.dtype, jnp.integer)):
    return {}
  if label.shape == logits.shape or (label.shape, 1) == (logits.shape[:-1], logits.shape[-1]):
    right = (logits.reshape(label.shape) > 0) == (kd.checks.countable(label) > 0)
  elif label.shape == logits.shape[:-1]:
    mask = kd.checks.class_mask_of("accuracy", batch.get("class_mask"), logits.shape)
    shown = logits if mask is None else jnp.where(mask, logits, -jnp.inf)
    right = jnp.argmax(shown, -1).astype(jnp.int32) == label.astype(jnp.int32)
  else:
    return {}
  update, micro_batches = whole(batch)
  valid = [counted(one, "labelled", ignored) for one in (batch, update)]
  if label.shape == logits.shape and batch.get("class_mask") is not None:  # it says which outputs have a label
    masks = [(one.get("class_mask", batch["class_mask"]), one["label"].shape) for one in (batch, update)]
    known = [kd.checks.class_mask_of("accuracy", *mask) for mask in masks]
    valid = [None if v is None or m is None else v & m for v, m in zip(valid, known, strict=True)]
  return {"accuracy": batch_mean(right.astype(jnp.float32), valid[0], axis_name, valid[1], micro_batches)}


def vary(tree: Any, axis_name: str | None) -> Any:
  """Marks values as each device's own, so that the gradient is local and the mean over devices is written once, by us.

  Without it replication checking sums gradients itself, and a custom gradient rule that mixes parameters with data
  does not type-check.
  """
  return tree if axis_name is None else jax.lax.pcast(tree, axis_name, to="varying")


def _device_key(key: Array, axis_name: str | None) -> Array:
  """The model's own dropout has to differ between devices; it agrees with one device's in distribution only."""
  return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))
