"""Several seeds of one run at once: seeds as a batch axis of the states, with the step counter shared.

`vmap` pays where one small net leaves an accelerator idle; on CPU a convolution with a batch axis on its kernels is
far slower than one seed after another (`map`), and there a plain loop over `fit` is faster still for convolutions,
see `engine.loop`. The configuration says which.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from leanax.core.errors import unknown
from leanax.engine.train import loop
from leanax.engine.train.loop import GetBatch, History, Hook, Run
from leanax.engine.train.state import TrainState
from leanax.engine.train.step import Step

WAYS = ("vmap", "map")


def start(create: Callable[[Array], TrainState], seeds: Sequence[int]) -> TrainState:
  """Returns the states of all seeds, with a leading axis on everything but the step.

  Args:
    create: `create(seed)`, traceable: a state from an int32 scalar.
    seeds: one per run.
  """
  states = jax.vmap(create)(jnp.asarray(seeds, jnp.int32))
  return states.replace(step=states.step[0])


def stack(trees: Sequence[Any]) -> Any:
  """Returns trees of the same form as one, with a leading axis on every leaf, except on the step of train states."""
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
  return stacked.replace(step=trees[0].step) if isinstance(stacked, TrainState) else stacked


def pick(states: TrainState, index: int) -> TrainState:
  """Returns the state of one run."""
  return jax.tree.map(lambda a: a[index], states.replace(step=None)).replace(step=states.step)


def fit(
  step: Step,
  states: TrainState,
  get_batch: GetBatch,
  data: Any,
  *,
  seeds: Sequence[int],
  steps: int,
  over: str = "vmap",
  own: Mapping[str, Array] = {},
  teacher_variables: Any = None,
  hooks: Sequence[Hook] = (),
  tick: Callable[[int], None] | None = None,
  steps_per_call: int | None = None,
  in_flight: int = loop.IN_FLIGHT,
  teacher_name: str = "the teacher",
) -> tuple[TrainState, History]:
  """Runs `engine.loop.fit` of several seeds on one device; metrics are (seeds, steps).

  Args:
    step: of `engine.training`.
    states: of `start`.
    get_batch: as of `engine.loop.fit`; each run gets its own seed.
    data: shared by all, a mapping.
    seeds: one per run.
    steps: of each run.
    over: "vmap" or "map".
    own: the arrays that differ between runs, with the runs as leading axis.
    teacher_variables: one teacher per run, with the runs as leading axis.
    hooks: their states and metrics have the runs as leading axis.
    tick: as of `engine.loop.fit`.
    steps_per_call: steps compiled into one call.
    in_flight: calls that may be unfinished.
    teacher_name: as of `engine.loop.fit`.
  """
  length = loop.steps_a_call(steps_per_call)
  run = jax.jit(batched(loop.several(step, get_batch, length), over))
  arguments = (data, (own, teacher_variables, jnp.asarray(seeds, jnp.int32)))
  more: Any = {"hooks": hooks, "tick": tick, "in_flight": in_flight, "teacher_name": teacher_name}
  return loop.drive(run, states, arguments, steps=steps, length=length, **more)


def batched(run: Run, over: str) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
  """Returns a run of several states that share a step: `run(states, count, data, (own, teacher_variables, seeds))`."""
  if over not in WAYS:
    raise unknown("way to run several seeds", over, WAYS)

  def together(states, count, data, each):
    def one(rest, each):
      own, teacher_variables, seed = each
      state, metrics = run(rest.replace(step=states.step), count, {**data, **own}, teacher_variables, seed)
      return state.replace(step=None), state.step, metrics

    rests = states.replace(step=None)
    if over == "vmap":
      rests, end, metrics = jax.vmap(one, out_axes=(0, None, 0))(rests, each)
    else:
      rests, ends, metrics = jax.lax.map(lambda args: one(*args), (rests, each))
      end = ends[0]
    return rests.replace(step=end), metrics

  return together
