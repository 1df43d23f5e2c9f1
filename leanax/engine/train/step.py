"""The one train step: a pure function from a state and a batch to the next state and its metrics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

import kd
from kd.objective import Objective, Weighted
from leanax.core import ranges
from leanax.core.errors import UserError
from leanax.engine.train import optim
from leanax.engine.train.average import average
from leanax.engine.train.forward import Forward
from leanax.engine.train.freeze import frozen, still
from leanax.engine.train.gradient import ITSELF, Problem, Read, Teacher, gradient, reparametrized, total
from leanax.engine.train.metrics import Metrics
from leanax.engine.train.state import REPARAM, TrainState
from leanax.graph.kinds import Reparam

Step = Callable[..., tuple[TrainState, Metrics]]


class Training(NamedTuple):
  """A pair of functions, as in optax: the state that `init` makes is the one that `step` moves.

  Attributes:
    init: `init(variables, *, aux=None, aux_state=None) -> TrainState`, the state before the first step: the variables
      of the model, {"params": ..., other collections}, of a quantized net with its grids ("qparams", "quant_state"),
      and what the losses train and remember, by term name.
    step: `step(state, batch, teacher_variables=None, *, axis_name=None, seed=seed) -> (state, metrics)`, one update,
      pure. The batch is {"image", "label", ...}, or a function from the number of a micro-batch to it; see
      `micro_batches`. Under an axis it is this device's equal share, and states and metrics are the same on all
      devices.
  """

  init: Callable[..., TrainState]
  step: Step


def training(
  forward: Forward,
  objective: Objective,
  tx: optax.GradientTransformation,
  *,
  teacher: Teacher | None = None,
  itself: bool = False,
  ema: float | None = None,
  average_aux: bool = False,
  accumulate: int = 1,
  seed: int = 0,
  per_device_statistics: bool = False,
  reparam: Reparam | None = None,
  freeze: Sequence[str] = (),
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
    accumulate: micro-batches per update, one at a time in memory. Means over examples are those of the whole update;
      running statistics, quantizer state and memories of losses move once per micro-batch. A loss that is `relational`
      would compare the examples of a micro-batch only, so it is refused where there are several.
    seed: of dropout, of the losses' randomness, and of an optimizer that draws random numbers.
    per_device_statistics: allow a model whose batch statistics are each device's own; their mean is taken.
    reparam: the weights as a function of what is trained, such as `sparsity.reparam.soft_threshold()`. What it trains
      is `state.aux["reparam"]`, whose leaves have the label "reparam"; its penalty is added to the loss; averages are
      of it, too. `engine.deployed(state, reparam)` is what is evaluated and exported.
    freeze: globs of the names of leaves that stay as they are, such as "Conv_*"; see `engine.train.freeze`.

  Raises:
    UserError: options that do not go together; `ema` is no decay; at `init`, a pattern of `freeze` matches nothing.
  """
  problem = Problem(forward, objective, teacher, itself, accumulate, per_device_statistics, reparam)
  _check(itself, ema, freeze, reparam)
  tx, average_aux = optim.lenient(tx), average_aux or reparam is not None

  def init(variables, *, aux=None, aux_state=None):
    params, qparams, model_state, quant_state = _divided(variables)
    frozen(freeze, variables)
    trained = {"params": params, "qparams": qparams, "aux": aux or {}}
    if reparam is not None:
      trained["aux"] = {**trained["aux"], REPARAM: reparam.init(params)}
      remembered = reparametrized(reparam, trained, jnp.int32(0), jax.random.key(seed))[1]
      aux_state = {**(aux_state or {}), **remembered}
    carried = {"model_state": model_state, "quant_state": quant_state, "aux_state": aux_state or {}}
    names = ("params", "qparams", "model_state", *(("aux", "aux_state") if average_aux else ()))
    averages = None if ema is None else jax.tree.map(jnp.copy, {name: (trained | carried)[name] for name in names})
    return TrainState(step=jnp.zeros((), jnp.int32), **trained, **carried, opt_state=tx.init(trained), ema=averages)

  def step(state, batch, teacher_variables=None, *, axis_name=None, seed=seed):
    # Order: nothing may follow a transformation that prunes, or pruned weights would move.
    optim.check_order(state.opt_state)
    if (state.ema is None) != (ema is None):  # averages that nothing moves are plausible and wrong
      raise UserError(f"this training has ema {ema}, and the state is of another; expected one of the same training")
    # Gradient: keys, teacher, forward pass and objective of each micro-batch, and one mean over them and the devices.
    wants_task = kd.wants_task(state.opt_state)
    reads = (total, task_of(objective, state.step)) if wants_task else (total,)
    options: Any = {"axis_name": axis_name, "seed": seed, "reads": reads}
    (grads, *task), carried, metrics = gradient(problem, state, batch, teacher_variables, **options)
    without, held = still(freeze, state)  # no gradient of frozen leaves; what moves them all the same is undone below
    grads, *task = map(without, (grads, *task))
    # Optimizer: one update, whose number is the state's step.
    more = {"task": task[0]} if wants_task else {}
    updates, opt_state = tx.update(grads, state.opt_state, state.trained, step=state.step, seed=seed, **more)
    updated: Any = optax.apply_updates(state.trained, updates)
    after: Any = held({**updated, **carried._asdict()})
    # Averages: of parameters, scales and statistics after the update.
    averages = average(state.ema, after, ema, step=state.step)
    state = state.replace(step=state.step + 1, **after, opt_state=opt_state, ema=averages and held(averages))
    return state, {**metrics, "grad_norm": optax.tree.norm(grads)}

  return Training(init, step)


def _check(itself: bool, ema: float | None, freeze: Sequence[str], reparam: Reparam | None) -> None:
  """Refuses options of `training` that do not go together; its arguments."""
  if ema is not None:
    ranges.check("ema", ema, ranges.BELOW_ONE)
  if itself and ema is None:
    raise UserError(ITSELF)
  if freeze and reparam is not None:
    raise UserError("'freeze' holds leaves whose weights a reparameterization makes anew; expected one of the two")


def _divided(variables: Any) -> tuple[Any, Any, dict[str, Any], Any]:
  """Returns a model's parameters, learned scales, other collections and quantizer state."""
  if not isinstance(variables, Mapping) or "params" not in variables:
    given = ", ".join(map(repr, variables)) if isinstance(variables, Mapping) else f"a {type(variables).__name__}"
    raise UserError(f"a model's variables are {given or 'nothing'}; expected {{'params': tree, ...}}")
  others = dict(variables)
  params, qparams, quant_state = (others.pop(name, {}) for name in ("params", "qparams", "quant_state"))
  return params, qparams, others, quant_state


def task_of(objective: Objective, step: Array) -> Read:
  """Returns the `read` of the terms without a teacher."""
  if not isinstance(objective, Weighted):
    raise UserError("the optimizer wants the task's gradient: expected an objective of terms, as kd.weighted gives")
  return lambda loss, logs: objective.task(logs, step)
