"""The norm of each term's part of the gradient, measured beside the training.

It is computed in a separate function, so that the training step and its numbers do not change.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from kd.objective import Weighted
from leanax.engine.train import loop, parallel
from leanax.engine.train.forward import Forward
from leanax.engine.train.gradient import Problem, Teacher, gradient
from leanax.engine.train.loop import GetBatch
from leanax.engine.train.state import TrainState
from leanax.graph.kinds import Reparam

Norms = Callable[..., dict[str, float]]


def term_norm(
  forward: Forward,
  objective: Weighted,
  *,
  teacher: Teacher | None = None,
  itself: bool = False,
  accumulate: int = 1,
  per_device_statistics: bool = False,
  reparam: Reparam | None = None,
) -> Callable[..., Array]:
  """Returns `norm(state, batch, teacher_variables=None, *, share, axis_name=None, seed=0)`, the norm of a gradient.

  It is that of sum_k share_k weight_k loss_k with respect to the model's parameters alone, `share` being (terms,)
  numbers; arguments as of `engine.training`.
  """
  problem = Problem(forward, objective, teacher, itself, accumulate, per_device_statistics, reparam)

  def norm(state, batch, teacher_variables=None, *, share, axis_name=None, seed=0):
    def shared(loss: Array, logs: Mapping[str, Array]) -> Array:
      parts = objective.parts(logs, state.step).values()
      return sum((share[index].astype(part.dtype) * part for index, part in enumerate(parts)), jnp.zeros_like(loss))

    options: Any = {"axis_name": axis_name, "seed": seed, "reads": (shared,)}
    (grads,), _, _ = gradient(problem, state, batch, teacher_variables, **options)
    return optax.tree.norm(grads["params"])

  return norm


def term_norms(
  norm: Callable[..., Array],
  objective: Weighted,
  get_batch: GetBatch,
  *,
  mode: str = "jit",
  devices: Sequence[jax.Device] | None = None,
) -> Norms:
  """Compiles the norms of all terms once; a call costs one training step per term.

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
    batch = loop.batches(get_batch, data, seed, axis_name, split)
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
