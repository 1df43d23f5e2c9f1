"""Several seeds of one run at once: seeds as a batch axis of the states, with the step counter shared.

`vmap` pays where one small net leaves an accelerator idle; on CPU a convolution with a batch axis on its kernels is
far slower than one seed after another (`map`), and there a plain loop over `fit` is faster still for convolutions,
see `engine.loop`. The configuration says which.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from core.errors import unknown
from engine import loop
from engine.loop import GetBatch, History, Hook, Run
from engine.state import TrainState
from engine.step import Step

WAYS = ("vmap", "map")


def start(create: Callable[[Array], TrainState], seeds: Sequence[int]) -> TrainState:
  """The states of all seeds, with a leading axis on everything but the step.

  Args:
    create: `create(seed)`, traceable: a state from an int32 scalar.
    seeds: one a run.
  """
  states = jax.vmap(create)(jnp.asarray(seeds, jnp.int32))
  return states.replace(step=states.step[0])


def pick(states: TrainState, index: int) -> TrainState:
  """The state of one run."""
  return jax.tree.map(lambda a: a[index], states.replace(step=jnp.broadcast_to(states.step, (index + 1,))))


def fit(
  step: Step,
  states: TrainState,
  get_batch: GetBatch,
  data: Any,
  *,
  seeds: Sequence[int],
  steps: int,
  over: str = "vmap",
  teacher_variables: Any = None,
  hooks: Sequence[Hook] = (),
  tick: Callable[[int], None] | None = None,
  steps_per_call: int = 1,
  in_flight: int = loop.IN_FLIGHT,
) -> tuple[TrainState, History]:
  """`engine.loop.fit` of several seeds on one device; metrics are (seeds, steps).

  Args:
    step: of `make_train_step`.
    states: of `start`.
    get_batch: as of `engine.loop.fit`; each run gets its own seed.
    data: shared by all.
    seeds: one a run.
    steps: of each run.
    over: "vmap" or "map".
    teacher_variables: one teacher for all.
    hooks: their states and metrics have the runs as leading axis.
    tick: as of `engine.loop.fit`.
    steps_per_call: steps compiled into one call.
    in_flight: calls that may be unfinished.
  """
  run = jax.jit(batched(loop.several(step, get_batch, steps_per_call), over))
  arguments = (data, teacher_variables, jnp.asarray(seeds, jnp.int32))
  return loop.drive(
    run, states, arguments, steps=steps, hooks=hooks, tick=tick, length=steps_per_call, in_flight=in_flight
  )


def batched(run: Run, over: str) -> Run:
  """The same run of several states, whose step is one."""
  if over not in WAYS:
    raise unknown("way to run several seeds", over, WAYS)

  def vmapped(states, count, data, teacher_variables, seeds):
    axes = jax.tree.map(lambda _: 0, states).replace(step=None)

    def each(state, seed):
      return run(state, count, data, teacher_variables, seed)

    return jax.vmap(each, in_axes=(axes, 0), out_axes=(axes, 0))(states, seeds)

  def mapped(states, count, data, teacher_variables, seeds):
    def each(rest, seed):
      state, metrics = run(rest.replace(step=states.step), count, data, teacher_variables, seed)
      return state.replace(step=None), state.step, metrics

    rests, ends, metrics = jax.lax.map(lambda args: each(*args), (states.replace(step=None), seeds))
    return rests.replace(step=ends[0]), metrics

  return vmapped if over == "vmap" else mapped
