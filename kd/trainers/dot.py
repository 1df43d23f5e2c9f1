"""Distillation-oriented trainer (DOT): SGD with one momentum for the task's gradient and one for the teacher's.

Zhao, Cui, Song, Liang: "DOT: A Distillation-Oriented Trainer", ICCV 2023, arXiv:2307.08436, algorithm 1:

    task' = (momentum - delta) task + gradient of the task
    distillation' = (momentum + delta) distillation + gradient of the distillation
    w' = w - learning_rate (task' + distillation')

We keep the buffer of the task and the sum of both,

    all' = (momentum + delta) all - 2 delta task + whole gradient,

which is equivalent, and with delta = 0 bitwise SGD with momentum. As in the authors' code, weight decay belongs to the
task's gradient, and a leaf with only one of the two gradients has `momentum` itself. Their code finds such leaves in
the autograd graph; here `both` selects the leaves with both gradients. Nesterov's form is not in the paper: it is the
lookahead of both buffers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from leanax.core import ranges
from leanax.core.errors import UserError

Mask = Callable[[Any], Any]


class DotState(NamedTuple):
  """Momentum buffers, trees like the parameters: of the whole gradient, and of the task's part."""

  whole: Any
  task: Any


def wants_task(opt_state: Any) -> bool:
  """Returns whether the optimizer of this state (or of its shapes) needs `task=` in its update."""

  def found(x: Any) -> bool:
    return isinstance(x, DotState)

  return any(found(leaf) for leaf in jax.tree.leaves(opt_state, is_leaf=found))


def scale_by_dot(
  momentum: float = 0.9,
  delta: float = 0.075,
  *,
  weight_decay: float = 0.0,
  mask: Mask | None = None,
  both: Mask | None = None,
  nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Returns the sum of the two momentum buffers as updates, before the learning rate; arguments as of `dot`."""
  ranges.check("dot: momentum", momentum, ranges.BELOW_ONE)
  ranges.check("dot: delta", delta, ranges.FINITE)
  if not (abs(delta) <= momentum and momentum + abs(delta) < 1):
    raise UserError(
      f"dot: momentum is {momentum} and delta {delta}; expected momentum - delta to be at least 0 and momentum + delta "
      "below 1"
    )
  decay = optax.add_decayed_weights(weight_decay, mask=mask)

  def init(params: Any) -> DotState:
    return DotState(optax.tree.zeros_like(params), optax.tree.zeros_like(params))

  # The names of optax's protocol; `updates` is the whole gradient.
  def update(updates: Any, state: Any, params: Any = None, *, task: Any = None, **extra: Any) -> tuple[Any, DotState]:
    del extra
    if task is None:
      raise UserError(
        "dot needs task=, the gradient of the terms without a teacher: tx.update(gradients, state, params, task=...)"
      )
    if weight_decay:
      updates, task = (decay.update(g, decay.init(params), params)[0] for g in (updates, task))
    reached = jax.tree.map(lambda _: True, updates) if both is None else both(updates)
    deltas = jax.tree.map(lambda yes: delta if yes else 0.0, reached)

    def whole(d: float, g: jax.Array, all_: jax.Array, of_task: jax.Array) -> jax.Array:
      moved = g + (momentum + d) * all_
      return moved - 2 * d * of_task if d else moved

    new_task = jax.tree.map(lambda d, g, of_task: g + (momentum - d) * of_task, deltas, task, state.task)
    new = jax.tree.map(whole, deltas, updates, state.whole, state.task)
    out = jax.tree.map(whole, deltas, updates, new, new_task) if nesterov else new
    return out, DotState(new, new_task)

  return optax.GradientTransformationExtraArgs(init, update)


def dot(
  learning_rate: optax.ScalarOrSchedule,
  momentum: float = 0.9,
  delta: float = 0.075,
  weight_decay: float = 0.0,
  nesterov: bool = False,
  *,
  mask: Mask | None = None,
  both: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
  """SGD with more momentum for the teacher's gradient than for the task's.

  `update(gradients, state, params, *, task)` takes the gradient of the whole objective, and as `task` the gradient of
  the terms without a teacher; the difference is the teacher's.

  Args:
    learning_rate: a number, or a function of the number of updates.
    momentum: the mean of the two momenta.
    delta: half their difference; the authors take 0.075 on CIFAR-100 and Tiny-ImageNet, 0.09 on ImageNet. With 0 this
      is optax.sgd.
    weight_decay: added to the task's gradient.
    nesterov: use Nesterov momentum for both buffers.
    mask: `mask(params)`, a tree of bools: the leaves that decay; all by default.
    both: `both(params)`, a tree of bools: the leaves with both gradients; all by default. The others, such as a loss's
      own parameters, have `momentum` itself.

  Raises:
    UserError: one of the momenta would be negative or not below 1.
  """
  return optax.chain(
    scale_by_dot(momentum, delta, weight_decay=weight_decay, mask=mask, both=both, nesterov=nesterov),
    optax.scale_by_learning_rate(learning_rate),
  )
