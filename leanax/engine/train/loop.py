"""The training loop: a bounded number of steps in flight, hooks at fixed steps, a stop where the loss is not finite.

The data lies on the devices as a whole, and each step makes its batch from (seed, step) inside the compiled function.
Several steps a call pay on accelerators; on CPU a convolution inside a compiled loop runs on one thread, several
times slower, so there each call is one step.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kd.counting import EMPTY
from kd.objective import NOT_FINITE
from leanax.core.errors import UserError
from leanax.engine.train import parallel
from leanax.engine.train.micro_batches import MicroBatch
from leanax.engine.train.state import TrainState
from leanax.engine.train.step import Step

GetBatch = Callable[..., dict[str, Array]]
History = dict[str, np.ndarray]
Run = Callable[..., tuple[TrainState, dict[str, Array]]]

# More than about 32 unfinished steps on several CPU devices can starve their collectives until the process is aborted.
IN_FLIGHT = 8
STEPS_PER_CALL = 32


def _never() -> bool:
  return False


class Hook(NamedTuple):
  """Something to do every so many steps, and after the last one.

  Attributes:
    every: it is called when the number of finished steps is a multiple of this.
    call: `call(step, state, metrics)`: the number of finished steps, the state after them, and each metric of the
      steps since the last call, (steps,). All of them were finite. Where it returns True, training ends here, once all
      hooks of this step were called.
    due: asked after each step, or call of several; where it returns True, the hook is called after that one too, once
      it is finished. For what does not depend on the number of steps: a signal, or the clock.
  """

  every: int
  call: Callable[[int, TrainState, History], bool | None]
  due: Callable[[], bool] = _never


def fit(
  step: Step,
  state: TrainState,
  get_batch: GetBatch,
  data: Any,
  *,
  steps: int,
  seed: int = 0,
  teacher_variables: Any = None,
  mode: str = "jit",
  devices: Sequence[jax.Device] | None = None,
  hooks: Sequence[Hook] = (),
  tick: Callable[[int], None] | None = None,
  steps_per_call: int | None = None,
  in_flight: int = IN_FLIGHT,
  teacher_name: str = "the teacher",
) -> tuple[TrainState, History]:
  """Trains from `state.step` up to `steps`; a state that is there already is returned as it is.

  Args:
    step: of `engine.training`.
    state: a fresh one or a restored one: the run goes on as if it had never stopped.
    get_batch: `get_batch(data, index, *, seed, part)`, pure: part k of n, given as (k, n), of the batch of a step; with
      several micro-batches per update, of the micro-batch with this number, counted from the first update's.
    data: arrays that lie on the devices, whatever `get_batch` reads.
    steps: updates to have made at the end.
    seed: of the order, of dropout and of the losses' randomness.
    teacher_variables: of the step's teacher.
    mode: see `engine.parallel`.
    devices: all local ones by default.
    hooks: checkpoints, metrics, evaluations, in this order.
    tick: called with the number of steps started, after each call, without waiting; for a progress bar.
    steps_per_call: so many steps are compiled into one call; 1 on CPU by default, and 32 elsewhere.
    in_flight: calls that may be unfinished.
    teacher_name: how errors call it.

  Returns:
    The last state, and each metric of each step, (steps,); of fewer steps where a hook has ended the training.

  Raises:
    UserError: the teacher's outputs, the loss or the gradient are not finite; hooks were last called before that step.
      Or the batch does not divide.
  """
  length = steps_a_call(steps_per_call, devices)
  run = compiled(step, get_batch, mode=mode, devices=devices, length=length)
  _check_batch(get_batch, data, mode, devices)
  arguments = (data, teacher_variables, jnp.asarray(seed, jnp.int32))
  more: Any = {"hooks": hooks, "tick": tick, "in_flight": in_flight, "teacher_name": teacher_name}
  return drive(run, state, arguments, steps=steps, length=length, **more)


def several(step: Step, get_batch: GetBatch, length: int) -> Run:
  """Returns `run(state, count, data, teacher_variables, seed)`: `count` steps, at most `length`, each with a batch.

  The count is an argument, so that all numbers of steps are one compiled function and give the same bits.
  """

  def run(state, count, data, teacher_variables, seed, *, axis_name=None, split=None):
    batch = batches(get_batch, data, seed, axis_name, split)

    def once(state):
      return step(state, batch, teacher_variables, axis_name=axis_name, seed=seed)

    if length == 1:
      state, metrics = once(state)
      return state, jax.tree.map(lambda m: m[None], metrics)

    def body(i, carry):
      state, filled = carry
      state, metrics = once(state)
      return state, jax.tree.map(lambda f, m: f.at[i].set(m), filled, metrics)

    empty = jax.tree.map(lambda m: jnp.zeros((length,), m.dtype), jax.eval_shape(once, state)[1])
    return jax.lax.fori_loop(0, count, body, (state, empty))

  return run


def batches(
  get_batch: GetBatch, data: Any, seed: Any, axis_name: str | None, split: jax.sharding.Sharding | None
) -> MicroBatch:
  """Returns `index -> batch`, this device's part of it; the compiler splits it as `split` says, if anything."""
  part: Any = (0, 1) if axis_name is None else (jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name))

  def batch(index):
    found = get_batch(data, index, seed=seed, part=part)
    return found if split is None else jax.lax.with_sharding_constraint(found, jax.tree.map(lambda _: split, found))

  return batch


def compiled(
  step: Step, get_batch: GetBatch, *, mode: str = "jit", devices: Sequence[jax.Device] | None = None, length: int = 1
) -> Run:
  """Returns `several`, compiled for devices."""
  return parallel.resident(several(step, get_batch, length), mode, devices)


def drive(
  run: Run,
  state: TrainState,
  arguments: tuple[Any, ...],
  *,
  steps: int,
  hooks: Sequence[Hook] = (),
  tick: Callable[[int], None] | None = None,
  length: int = 1,
  in_flight: int = IN_FLIGHT,
  teacher_name: str = "the teacher",
) -> tuple[TrainState, History]:
  """Calls `run(state, count, *arguments)` until `steps` are done; the steps are the last axis of metrics. See `fit`."""
  done = int(state.step)
  flying: collections.deque[tuple[int, int, dict[str, Array]]] = collections.deque()
  kept: list[History] = []

  def land(most: int) -> None:
    while len(flying) > most:
      finished, count, metrics = flying.popleft()
      values = {name: np.asarray(m)[..., :count] for name, m in jax.device_get(metrics).items()}
      refuse_teacher(values, finished, teacher_name)
      refuse_non_finite(values, finished)
      refuse_empty(values, finished)
      kept.append(values)

  called = {index: 0 for index in range(len(hooks))}
  while done < steps:
    stop = min([steps, done + length, *((done // hook.every + 1) * hook.every for hook in hooks)])
    state, metrics = run(state, jnp.asarray(stop - done, jnp.int32), *arguments)
    flying.append((done, stop - done, metrics))
    done = stop
    if tick is not None:
      tick(done)
    due = [i for i, hook in enumerate(hooks) if hook.due() or done % hook.every == 0 or done == steps]
    land(0 if due else in_flight - 1)
    ends = False
    for index in due:
      ends |= bool(hooks[index].call(done, state, joined(kept[called[index] :])))
      called[index] = len(kept)
    if ends:
      break
  land(0)
  return state, joined(kept)


def joined(parts: Sequence[History]) -> History:
  """Returns the metrics of consecutive calls as one array each."""
  return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]} if parts else {}


def refuse_non_finite(metrics: History, finished: int) -> None:
  """Raises a UserError that names the first step whose loss or gradient is not finite.

  Args:
    metrics: (..., steps).
    finished: steps finished before the first of them.
  """
  for name in ("loss", "grad_norm"):
    bad = np.argwhere(~np.isfinite(metrics[name]).reshape(-1, metrics[name].shape[-1]))
    if bad.size:
      row, column = min(bad.tolist(), key=lambda at: at[1])
      run = f" of run {row}" if metrics[name].ndim > 1 else ""
      value = metrics[name].reshape(-1, metrics[name].shape[-1])[row, column]
      raise UserError(
        f"training stopped: {name} is {value} at step {finished + column + 1}{run}; "
        "checkpoints of earlier steps are kept; expected finite numbers (a lower learning rate or clip_norm may help)"
      )


def refuse_teacher(metrics: History, finished: int, name: str) -> None:
  """Raises a UserError that names the first step at which the teacher's outputs are not finite; the count is taken out.

  Args:
    metrics: as above.
    finished: as above.
    name: how the error calls the teacher.
  """
  found = metrics.pop(NOT_FINITE, None)
  if found is None:
    return
  bad = found.reshape(-1, found.shape[-1]).max(0)
  if bad.any():
    first = int(np.flatnonzero(bad)[0])
    raise UserError(
      f"training stopped: the outputs of {name} are not finite for {_examples(bad[first])} of the batch of step "
      f"{finished + first + 1}; checkpoints of earlier steps are kept; expected numbers, or -inf for an excluded class"
    )


def _examples(count: float) -> str:
  return "an example" if count <= 1 else f"{count:.0f} examples"


def refuse_empty(metrics: History, finished: int) -> None:
  """Raises a UserError that names the first step whose whole batch is masked; arguments as above."""
  if "examples_left" not in metrics:
    return
  empty = np.flatnonzero((metrics["examples_left"] == 0).reshape(-1, metrics["examples_left"].shape[-1]).any(0))
  if empty.size:
    raise UserError(
      f"training stopped at step {finished + empty[0] + 1}: {EMPTY}; checkpoints of earlier steps are kept"
    )


def steps_a_call(given: int | None, devices: Sequence[jax.Device] | None = None) -> int:
  """Returns how many steps are compiled into one call: as given, or what suits the device."""
  if given is not None and given < 1:
    raise UserError(f"steps_per_call is {given}; expected 1 or more")
  platform = (jax.local_devices() if devices is None else devices)[0].platform
  return given or (1 if platform == "cpu" else STEPS_PER_CALL)


def _check_batch(get_batch: GetBatch, data: Any, mode: str, devices: Sequence[jax.Device] | None) -> None:
  """Refuses a batch that does not divide, before anything is compiled."""
  shapes = jax.eval_shape(lambda data: get_batch(data, jnp.zeros((), jnp.int32), seed=0, part=(0, 1)), data)
  count = 1 if mode == "jit" else len(jax.local_devices() if devices is None else devices)
  parallel.share(shapes, count)
