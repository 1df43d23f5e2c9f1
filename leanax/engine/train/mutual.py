"""Deep mutual learning: students of one architecture that are each other's teachers, as an axis of the step.

Zhang, Xiang, Hospedales, Lu: "Deep Mutual Learning", CVPR 2018, arXiv:1706.00384. Each peer minimises its losses
without a teacher, and those with one against the mean probabilities of the other peers at the loss's temperature, which
are constants. With `kd.hinton` at temperature 1 that is KL(other || own) for two peers, as in the paper. For more, the
paper takes the mean of the divergences from each, and tries the divergence from their mean, which is what we do: the
gradients are the same, the values are not. All peers move at once, by their outputs before the step; in the paper's
algorithm they take turns.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import kd
from kd.objective import Weighted
from kd.outputs import is_one
from leanax.core.errors import UserError
from leanax.engine.train.state import TrainState
from leanax.engine.train.step import Step

PEERS = "peers"
# Far from the seeds that people give to runs, so that a peer is not another run's; peer 0 has the run's own.
APART = 1_000_003


class Mutual(Weighted):
  """An objective of one peer, to be called under `together`; the teacher that it is given has to be None."""

  def __call__(self, student, teacher, batch, **known):
    if teacher is not None:
      raise UserError("peers teach each other: expected no teacher beside them, and no 'teacher_logits' in the batch")
    if not is_one(student.logits):
      raise UserError("peers teach each other by their logits: expected a model with one output, an array")
    logits, class_mask = members(student.logits), batch.get("class_mask")
    return super().__call__(student, kd.Outputs(_mean(logits, class_mask), members=logits), batch, **known)


def others(logits: Array, class_mask: Array | None = None) -> Array:
  """Returns (batch, classes) logarithms of the mean probabilities of all peers but this one, as constants.

  Args:
    logits: (batch, classes) of this peer, under a mapped axis `PEERS`.
    class_mask: the classes that count.
  """
  return _mean(members(logits), class_mask)


def _mean(logits: Array, class_mask: Array | None) -> Array:
  return kd.teacher_at(kd.Outputs(logits[:, 0], members=logits), 1.0, class_mask)


def members(logits: Array) -> Array:
  """Returns (batch, peers - 1, ..., classes), the logits of all peers but this one, as constants; see `others`."""
  peers = jax.lax.axis_size(PEERS)  # a NameError where nothing is mapped, and a peer would be alone

  # A rule for the mapped axis and not a collective over it, which fails under shard_map's check of replication.
  @jax.custom_batching.custom_vmap
  def of_others(x: Array) -> Array:
    return jnp.broadcast_to(x[:, None], (x.shape[0], peers - 1, *x.shape[1:]))

  @of_others.def_vmap
  def of_others_mapped(size: int, mapped: list[bool], x: Array) -> tuple[Array, bool]:
    x = x if mapped[0] else jnp.broadcast_to(x, (size, *x.shape))
    rest = np.array([[other for other in range(size) if other != own] for own in range(size)])
    return jnp.moveaxis(x[rest], 1, 2), True

  return of_others(jax.lax.stop_gradient(logits))


def mapped(fn: Callable[..., Any], peers: int) -> Callable[..., Any]:
  """Returns a function of one peer's state as one of all of them; each result has the peers as leading axis.

  Args:
    fn: `fn(state, batch, teacher_variables=None, *, axis_name=None, seed=0, **more)`, such as `engine.term_norm` gives.
    peers: how many, 2 or more.

  Returns:
    The same function of the states (`engine.seeds.stack`), which see one batch. Peer 0 has the seed that is given, the
    others seeds of their own.
  """
  if peers < 2:
    raise UserError(f"mutual learning of {peers} peers; expected 2 or more")

  def together(states, batch, teacher_variables=None, *, axis_name=None, seed=0, **more):
    def one(rest: TrainState, seed: Array) -> Any:
      state = rest.replace(step=states.step)
      return fn(state, batch, teacher_variables, axis_name=axis_name, seed=seed, **more)

    seeds = jnp.asarray(seed, jnp.int32) + APART * jnp.arange(peers, dtype=jnp.int32)
    return jax.vmap(one, axis_name=PEERS)(states.replace(step=None), seeds)

  return together


def together(step: Step, peers: int) -> Step:
  """Returns the step of all peers: `together(states, batch, ...) -> (states, metrics)`, metrics being the peers' means.

  Args:
    step: of `engine.training` with the objective `Mutual`.
    peers: how many.
  """

  def without_count(*args: Any, **kwargs: Any) -> Any:
    state, metrics = step(*args, **kwargs)
    return state.replace(step=None), metrics

  every = mapped(without_count, peers)

  def run(states, batch, teacher_variables=None, *, axis_name=None, seed=0):
    rests, metrics = every(states, batch, teacher_variables, axis_name=axis_name, seed=seed)
    return rests.replace(step=states.step + 1), jax.tree.map(lambda m: jnp.mean(m, axis=0), metrics)

  return run


def mean(fn: Callable[..., Array], peers: int) -> Callable[..., Array]:
  """Returns the mean over the peers of a function such as `engine.term_norm` gives."""
  every = mapped(fn, peers)
  return lambda *args, **kwargs: jnp.mean(every(*args, **kwargs), axis=0)
