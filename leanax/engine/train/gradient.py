"""The gradient of an update: of one batch, or added over the micro-batches of a scan, and the mean over the devices."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

import kd
from kd.counting import Counts
from kd.objective import Objective, Weighted, is_objective
from kd.outputs import as_outputs
from leanax.core import axis, keys, ranges
from leanax.core.errors import UserError
from leanax.engine.train import metrics as measured
from leanax.engine.train.forward import Forward
from leanax.engine.train.metrics import Metrics
from leanax.engine.train.micro_batches import Batch, MicroBatch, filled, micro_batches
from leanax.engine.train.state import REPARAM, TrainState, deployed
from leanax.engine.train.statistics import refuse_local_statistics
from leanax.graph.kinds import Reparam

Teacher = Callable[[Any, Array], Array | kd.Outputs]
ITSELF = "the teacher is the student itself with the averages of its weights, and there are none; expected 'ema'"


@dataclass(frozen=True)
class Problem:
  """The model, objective and teacher of a training: the arguments of `engine.training` that concern the gradient.

  Raises:
    UserError: the objective is not one, has two teachers, or cannot be taken over micro-batches.
  """

  forward: Forward
  objective: Objective
  teacher: Teacher | None = None
  itself: bool = False
  accumulate: int = 1
  per_device_statistics: bool = False
  reparam: Reparam | None = None

  def __post_init__(self):
    if not is_objective(self.objective):
      shown = getattr(self.objective, "__name__", type(self.objective).__name__)
      raise UserError(f"the objective of engine.training is {shown}; expected one of terms, as kd.weighted gives")
    if self.itself and self.teacher is not None:
      raise UserError("the teacher is the student itself, and there is another; expected one of them")
    ranges.check("accumulate", self.accumulate, ranges.whole(1))
    if isinstance(self.objective, Weighted):
      self.objective.refuse_accumulation(self.accumulate)
      if any(term.name == REPARAM for term in self.objective.terms):
        raise UserError(
          f"a term is called {REPARAM!r}, where the state holds a reparametrization; expected another name"
        )


class Carried(NamedTuple):
  """State that goes from one micro-batch to the next: running statistics, quantizer state, memories of losses."""

  model_state: Any
  quant_state: Any
  aux_state: Any


Read = Callable[[Array, Mapping[str, Array]], Array]
Gradients = tuple[list[Any], Carried, dict[str, Any]]


def total(loss: Array, logs: Mapping[str, Array]) -> Array:
  """Returns the whole loss; the `read` of an ordinary gradient."""
  del logs
  return loss


def gradient(
  problem: Problem,
  state: TrainState,
  batch: Batch | MicroBatch,
  teacher_variables: Any,
  *,
  axis_name: str | None,
  seed: int | Array,
  reads: Sequence[Read] = (total,),
) -> tuple[list[Any], Carried, Metrics]:
  """Returns the gradients of an update, the state that it carries on, and its metrics; the same on all devices.

  Args:
    problem: what is minimised.
    state: before the update.
    batch: see `micro_batches`; under an axis, this device's share.
    teacher_variables: of the teacher.
    axis_name: the device axis, or None.
    seed: of all randomness.
    reads: `read(loss, logs) -> scalar`, a gradient for each.
  """
  # Micro-batches: made one at a time, numbered over the whole training, so that their randomness is the number's.
  count = problem.accumulate
  first = state.step * count if count > 1 else state.step
  micro_batch = micro_batches(batch, first, count)
  # Counts of the whole update: the sums of each micro-batch are divided by these, not by its own.
  counts = counts_of(problem, micro_batch, axis_name)
  trained = vary(state.trained, axis_name)

  def of_micro_batch(carried: Carried, k: Array | int) -> Gradients:
    """Returns the gradients of one micro-batch: parts whose mean over micro-batches and devices is the update's."""
    # Keys: functions of the seed and the number of the micro-batch, that is of (seed, step, micro-batch).
    key = keys.step_key(seed, first + k, "step")
    # The batch is made once: fused into each of its readers, its pixels could be rounded differently in each.
    examples = jax.lax.optimization_barrier(filled(micro_batch(k)))
    # Teacher outputs: constants of the gradient.
    constants = teacher_outputs(problem, state, teacher_variables, examples, key, axis_name)

    def run(*args: Any) -> tuple[Any, Any, Any]:
      return problem.forward(*args, train=True, key=_device_key(key, axis_name), axis_name=axis_name)

    if axis_name is not None and not problem.per_device_statistics:
      # The trace is of arguments that are alike on all devices, and so is its key.
      alike = functools.partial(problem.forward, train=True, key=key, axis_name=axis_name)
      refuse_local_statistics(alike, state.variables, state.qparams, state.quant_state, examples["image"])

    def loss_fn(trained: Any, read: Read) -> tuple[Array, tuple[Carried, dict[str, Any]]]:
      # Reparametrization: the weights that the model is applied with.
      params, remembered, penalty = reparametrized(problem.reparam, trained, state.step, key)
      # Forward: the student in training mode.
      variables = {"params": params, **carried.model_state}
      out, model_state, quant_state = run(variables, trained["qparams"], carried.quant_state, examples["image"])
      student = as_outputs(out)
      # Objective: this part of the loss, and what the losses remember.
      known: Any = {"aux": trained["aux"], "aux_state": carried.aux_state, "step": state.step, "key": key}
      known |= {"axis_name": axis_name} | ({} if counts is None else {"counts": counts})
      loss, aux_state, logs = problem.objective(student, constants, examples, **known)
      if penalty is not None:
        loss, logs = loss + penalty, {**logs, f"{REPARAM}/penalty": penalty}
      metrics = {"loss": loss, **measured.accuracy_of(problem.objective, student, examples), **logs}
      kept = {**carried.model_state, **model_state}  # a collection that the model does not return stays as it is
      return read(loss, logs), (Carried(kept, quant_state, {**aux_state, **remembered}), metrics)

    # Gradient: with several reads the forward passes are compiled as one.
    found = [jax.grad(loss_fn, has_aux=True)(trained, read) for read in reads]
    after, metrics = found[0][1]
    if problem.per_device_statistics:
      after = after._replace(model_state=axis.pmean(after.model_state, axis_name))
    return [grads for grads, _ in found], after, metrics

  # One micro-batch, or a scan over several: gradients are added, running statistics passed on.
  carried = Carried(state.model_state, state.quant_state, state.aux_state)
  if count == 1:
    grads, carried, metrics = of_micro_batch(carried, 0)
  else:
    zeros = [vary(optax.tree.zeros_like(state.trained), axis_name) for _ in reads]
    grads, carried, metrics = added(of_micro_batch, zeros, carried, count)
  # Devices: one mean for all.
  grads, metrics = axis.pmean((grads, metrics), axis_name)
  return grads, carried, measured.divided(metrics)


def added(of_micro_batch: Callable[..., Gradients], zeros: list[Any], carried: Carried, count: int) -> Gradients:
  """Returns the mean of the micro-batches' gradients and metrics, by a scan that holds one micro-batch at a time."""

  def body(carry: tuple[list[Any], Carried], k: Array) -> tuple[tuple[list[Any], Carried], dict[str, Any]]:
    sums, carried = carry
    grads, carried, metrics = of_micro_batch(carried, k)
    return (jax.tree.map(jnp.add, sums, grads), carried), metrics

  (sums, carried), metrics = jax.lax.scan(body, (zeros, carried), jnp.arange(count, dtype=jnp.int32))
  return jax.tree.map(lambda g: g / count, sums), carried, jax.tree.map(lambda m: jnp.mean(m, 0), metrics)


def reparametrized(
  reparam: Reparam | None, trained: Mapping[str, Any], step: Array, key: Array
) -> tuple[Any, dict[str, Any], Array | None]:
  """Returns (params, what is remembered, penalty): the weights that the model is applied with in training."""
  if reparam is None:
    return trained["params"], {}, None
  aux = trained["aux"][REPARAM]
  params, found = reparam.forward(trained["params"], aux, step=step, key=key, train=True)
  return params, {REPARAM: found} if found else {}, reparam.penalty(aux)


def counts_of(problem: Problem, micro_batch: MicroBatch, axis_name: str | None) -> Counts | None:
  """Returns what counts in the whole update, added over micro-batches and devices; None where one batch is all.

  Only labels and masks are read: the compiler drops the images, so that nothing is computed twice.
  """
  objective, count = problem.objective, problem.accumulate
  if count == 1 or not isinstance(objective, Weighted):
    return None
  each = jax.lax.map(lambda k: objective.counts(micro_batch(k)), jnp.arange(count, dtype=jnp.int32))
  return axis.psum(jax.tree.map(lambda a: jnp.sum(a, 0), each), axis_name)


def own_averages(problem: Problem, state: TrainState, key: Array, axis_name: str | None) -> Teacher:
  """Returns the student with the averages of its own weights, in evaluation mode, as a teacher without variables.

  Raises:
    UserError: there are no averages: it would agree with itself, which is a loss of 0 with gradient 0.
  """
  if state.ema is None:
    raise UserError(ITSELF)
  now = deployed(state, problem.reparam)

  def teacher(_, x):
    args = now.variables, now.qparams, now.quant_state
    return problem.forward(*args, x, train=False, key=key, axis_name=axis_name)[0]

  return teacher


def teacher_outputs(
  problem: Problem, state: TrainState, variables: Any, batch: Batch, key: Array, axis_name: str | None
) -> kd.Outputs | None:
  """Returns the teacher's outputs for a batch: run now, or read from the batch, never both; None without a teacher.

  Raises:
    UserError: the batch has cached logits and there is a teacher to run as well; or the teacher has no variables.
  """
  teacher, given = problem.teacher, batch.get("teacher_logits")
  if problem.itself:
    teacher, variables = own_averages(problem, state, key, axis_name), ()
  if teacher is not None and given is not None:
    raise UserError("the batch holds 'teacher_logits' and there is a teacher to run: expected one of them")
  if teacher is not None:
    if variables is None:
      raise UserError("the step has a teacher and got no teacher_variables")
    given = teacher(variables, batch["image"])
  if given is None:
    return None
  # Behind a barrier: the compiler must not fuse the teacher, or a look-up of its outputs, into the loss with another
  # rounding, so that training from stored logits has the bits of training with the running teacher.
  return as_outputs(jax.lax.optimization_barrier(jax.lax.stop_gradient(given)))


def vary(tree: Any, axis_name: str | None) -> Any:
  """Marks values as each device's own, so that the gradient is local and the mean over devices is written once, by us.

  Without it replication checking sums gradients itself, and a custom gradient rule that mixes parameters with data
  does not type-check.
  """
  return tree if axis_name is None else jax.lax.pcast(tree, axis_name, to="varying")


def _device_key(key: Array, axis_name: str | None) -> Array:
  """Returns the key of the model's dropout, which differs between devices; one device agrees in distribution only."""
  return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))
