"""Magnitude pruning (Han et al., "Learning both Weights and Connections", arXiv:1506.02626), gradual when scheduled.

At each mask update of the schedule the entries of largest |w| are kept, so many as the density of that moment says, or
all that reach a threshold. Where we differ from Zhu & Gupta's implementation (arXiv:1710.01878): pruned weights are
zero and no longer train, so they do not come back while the density falls.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from core.errors import UserError, unknown
from sparsity import allocation as allocations
from sparsity.allocation import check_density, count
from sparsity.packed import pack
from sparsity.schedules import Schedule, one_shot
from sparsity.select import KERNELS, Setting, select
from sparsity.threshold import topk_mask, topk_masks
from sparsity.wrapper import wrap

Allocation = str | Callable[[allocations.Shapes, float], dict[str, float]]
ALLOCATIONS = {"uniform": allocations.uniform, "erk": allocations.erk}
GLOBAL = "global"


class Group(NamedTuple):
  """Leaves that are ranked as one (their indices among the tree's leaves), and what each mask update keeps of them.

  `levels` is int32 counts, or float32 thresholds of |w|, one for each update of the schedule.
  """

  leaves: tuple[int, ...]
  levels: np.ndarray


def magnitude(
  inner: optax.GradientTransformation,
  *,
  density: float | None = None,
  threshold: float | None = None,
  allocation: Allocation = "uniform",
  schedule: Schedule | None = None,
  rules: Sequence[tuple[str, Setting]] = KERNELS,
  pack_axis: int = -1,
) -> optax.GradientTransformationExtraArgs:
  """Wraps an optimizer so that weights of small magnitude are pruned while it trains.

  `update(gradients, state, params, *, step)`: gradients are already averaged over devices, `step` counts optimizer
  updates so far. Masks are made from `params` as they come in, and the update takes pruned ones to exactly zero. See
  wrapper.py for what may enclose the result.

  Args:
    inner: any optax optimizer.
    density: the part of the chosen weights that is kept in the end, in (0, 1]; a leaf of n entries keeps
      max(1, n * density rounded half to even), and among equal magnitudes the lower flat index.
    threshold: instead of a density, the |w| from which on a weight is kept in the end (a leaf's largest always is).
    allocation: how `density` is shared out: "uniform", "erk", "global" (one ranking over all chosen leaves), or a
      function (shapes by name, density) -> densities by name.
    schedule: `sparsity.one_shot(at)` or `sparsity.cubic(start, end, every)`; None prunes in the first update. With a
      threshold the schedule takes the threshold from 0 to its end value.
    rules: ordered (glob, setting) pairs over leaf names, first match wins. True: prune; False, and no match: leave
      alone; a number: prune to this density (or threshold) of its own, outside the allocation.
    pack_axis: the axis along which masks are bit-packed.

  Returns:
    An optax transformation whose state is a `sparsity.SparsityState`.

  Raises:
    UserError: neither or both of density and threshold, a density outside (0, 1], a negative threshold, an unknown
      allocation; at `init`, a rule that matches nothing.
  """
  schedule = one_shot() if schedule is None else schedule
  _check(density, threshold, allocation)
  steps = np.asarray(schedule.steps, np.int32)

  def groups(params: Any) -> list[Group]:
    chosen = select(params, rules)
    if threshold is not None:
      own = {i: threshold if setting is True else float(setting) for i, (_, _, setting) in chosen.items()}
      rise = 1 - np.asarray(schedule.remaining)
      return [Group((i,), np.asarray(rise * level, np.float32)) for i, level in own.items()]
    assert density is not None
    return _count_groups(chosen, density, allocation, schedule)

  def start(params: Any) -> Any:
    leaves, treedef = jax.tree.flatten(params)
    pruned = {i for group in groups(params) for i in group.leaves}
    return treedef.unflatten(
      [pack(jnp.ones(leaf.shape, bool), pack_axis) if i in pruned else None for i, leaf in enumerate(leaves)]
    )

  def due(step: jax.Array) -> jax.Array:
    return jnp.sum(jnp.asarray(steps) <= step, dtype=jnp.int32)

  def renew(params: Any, gradients: Any, masks: Any, wanted: jax.Array) -> Any:
    del gradients
    leaves, treedef = jax.tree.flatten(params)
    made = treedef.flatten_up_to(masks)
    plan = {group.leaves: jnp.asarray(group.levels)[wanted - 1] for group in groups(params)}
    if threshold is None:
      new = _largest(leaves, plan)
    else:
      new = {i: _reaches(leaves[i], level) for (i,), level in plan.items()}
    for i, mask in new.items():
      made[i] = pack(mask, pack_axis)
    return treedef.unflatten(made)

  return wrap(inner, start, due, renew)


def _check(density: float | None, threshold: float | None, allocation: Allocation) -> None:
  if (density is None) == (threshold is None):
    raise UserError("sparsity.magnitude needs either density= or threshold=, and not both")
  if density is not None:
    check_density("density", density)
  if threshold is not None and not threshold >= 0:
    raise UserError(f"threshold is {threshold}, but a threshold of magnitudes is 0 or more")
  if threshold is not None and allocation != "uniform":
    raise UserError("allocation= shares out a density; a threshold has none to share out")
  if isinstance(allocation, str) and allocation not in {*ALLOCATIONS, GLOBAL}:
    raise unknown("allocation", allocation, {*ALLOCATIONS, GLOBAL})


def _count_groups(
  chosen: dict[int, tuple[str, jax.Array, Setting]], density: float, allocation: Allocation, schedule: Schedule
) -> list[Group]:
  """Groups with their kept counts; leaves that stay dense throughout are in none, and get no mask."""
  together = [i for i, (_, _, setting) in chosen.items() if setting is True]
  final = {(i,): check_density(f"the density of {chosen[i][0]!r}", chosen[i][2]) for i in chosen if i not in together}
  if allocation == GLOBAL:
    final |= {tuple(together): density} if together else {}
  else:
    share = ALLOCATIONS[allocation] if isinstance(allocation, str) else allocation
    shares = share({chosen[i][0]: chosen[i][1].shape for i in together}, density) if together else {}
    final |= {(i,): check_density(f"the density of {chosen[i][0]!r}", shares[chosen[i][0]]) for i in together}

  def counts(leaves: tuple[int, ...], density: float) -> np.ndarray:
    size = sum(chosen[i][1].size for i in leaves)
    return np.asarray([count(size, d) for d in schedule.densities(density)], np.int32)

  return [Group(leaves, counts(leaves, d)) for leaves, d in final.items() if d < 1 or schedule.initial < 1]


def _largest(leaves: list[jax.Array], plan: dict[tuple[int, ...], jax.Array]) -> dict[int, jax.Array]:
  """The masks of the groups in `plan`, {leaves that are ranked as one: how many of them to keep}, by leaf."""
  new: dict[int, jax.Array] = {}
  alone = [group for group in plan if len(group) == 1]
  if alone:
    masks = topk_masks([leaves[i] for (i,) in alone], jnp.stack([plan[group] for group in alone]))
    new |= {i: mask for (i,), mask in zip(alone, masks, strict=True)}
  for group in (group for group in plan if len(group) > 1):
    new |= dict(zip(group, topk_mask([leaves[i] for i in group], plan[group]), strict=True))
  return new


def _reaches(x: jax.Array, level: jax.Array) -> jax.Array:
  size = jnp.abs(x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32))
  return size >= jnp.minimum(level.astype(size.dtype), jnp.max(size))
