"""How hard each term of an objective pulls: the norm of its part of the gradient, measured beside the training.

It is computed in a function of its own, so that the training step and its numbers are what they are without it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

import kd
from kd.objective import Weighted
from leanax.core import axis, keys
from leanax.engine.train import parallel
from leanax.engine.train.counting import filled
from leanax.engine.train.forward import Forward
from leanax.engine.train.loop import GetBatch
from leanax.engine.train.state import TrainState
from leanax.engine.train.step import in_training, minimised, own_averages, teacher_outputs, vary

Norms = Callable[..., dict[str, float]]


def term_norm(
  forward: Forward,
  objective: Weighted,
  *,
  teacher: Callable[[Any, Array], Array | kd.Outputs] | None = None,
  itself: bool = False,
  accumulate: int = 1,
) -> Callable[..., Array]:
  """`norm(state, batch, teacher_variables=None, *, share, axis_name=None, seed=0)`, pure: the norm of a gradient.

  It is that of sum_k share_k weight_k loss_k with respect to the model's parameters alone, `share` being (terms,)
  numbers; arguments as of `engine.training`.
  """

  def norm(state, batch, teacher_variables=None, *, share, axis_name=None, seed=0):
    batch, key = filled(batch), keys.step_key(seed, state.step, "step")
    of_itself = own_averages(forward, state, key, axis_name) if itself else None
    taught = teacher_outputs(of_itself or teacher, () if itself else teacher_variables, batch)
    run = in_training(forward, key, axis_name)
    loss_of = minimised(run, objective, state, taught, batch, accumulate=accumulate, key=key, axis_name=axis_name)
    trained = vary(state.trained, axis_name)

    def value(params):
      logs = loss_of({**trained, "params": params})[1][3]
      parts = objective.parts(logs, state.step // accumulate).values()
      return sum(share[index].astype(part.dtype) * part for index, part in enumerate(parts))

    return optax.tree.norm(axis.pmean(jax.grad(value)(trained["params"]), axis_name))

  return norm


def term_norms(
  norm: Callable[..., Array],
  objective: Weighted,
  get_batch: GetBatch,
  *,
  mode: str = "jit",
  devices: Sequence[jax.Device] | None = None,
) -> Norms:
  """Compiles the norms of all terms once; a call costs a training step a term.

  Args:
    norm: of `term_norm`.
    objective: the same.
    get_batch: as of `engine.fit`.
    mode: that of the training, see `engine.parallel`: a model that names the device axis needs it here, too.
    devices: the same.

  Returns:
    `norms(step, state, data, teacher_variables=None, *, seed=0) -> {"<term>/grad_norm": ...}`, on the batch of a step
    (from 0), with that step's randomness and weights, at the state's parameters.
  """

  def measure(state, step, data, teacher_variables, seed, share, *, axis_name=None, split=None):
    part = (0, 1) if axis_name is None else (jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name))
    batch = get_batch(data, step, seed=seed, part=part)
    if split is not None:
      batch = jax.lax.with_sharding_constraint(batch, jax.tree.map(lambda _: split, batch))
    return norm(state.replace(step=step), batch, teacher_variables, share=share, axis_name=axis_name, seed=seed)

  run = parallel.resident(measure, mode, devices)
  one_of = np.eye(len(objective.terms), dtype=np.float32)

  def norms(
    step: int, state: TrainState, data: Mapping[str, Array], teacher_variables: Any = None, *, seed: int = 0
  ) -> dict[str, float]:
    given = state, jnp.int32(step), data, teacher_variables, jnp.int32(seed)
    found = [run(*given, share) for share in one_of]
    return {f"{term.name}/grad_norm": float(one) for term, one in zip(objective.terms, found, strict=True)}

  return norms
