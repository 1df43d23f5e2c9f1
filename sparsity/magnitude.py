"""Magnitude pruning (Han et al., "Learning both Weights and Connections", arXiv:1506.02626), gradual when scheduled.

At each mask update of the schedule the entries of largest |w| are kept, so many as the density of that moment says, or
all that reach a threshold. Where we differ from Zhu & Gupta's implementation (arXiv:1710.01878): pruned weights are
zero and no longer train, so they do not come back while the density falls.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from leanax.core import ranges
from leanax.core.errors import UserError, unknown
from sparsity import allocation as allocations
from sparsity.allocation import check_density, counts
from sparsity.packed import pack
from sparsity.schedules import Schedule, check_schedule, one_shot
from sparsity.select import KERNELS, Chosen, Setting, Stacked, select
from sparsity.threshold import SMALL, topk_mask, topk_masks
from sparsity.wrapper import wrap

Allocation = str | Callable[[allocations.Shapes, float], dict[str, float]]
ALLOCATIONS = {"uniform": allocations.uniform, "erk": allocations.erk}
GLOBAL = "global"


class Group(NamedTuple):
  """Leaves (indices among the tree's) that are ranked as one, or the layers of one leaf, each by itself.

  `levels` is what each mask update keeps of them: int32 counts or float32 thresholds of |w|, (updates, 1), or of one
  leaf (updates, layers).
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
  stacked: Stacked = (),
  pack_axis: int = -1,
) -> optax.GradientTransformationExtraArgs:
  """Wraps an optimizer so that weights of small magnitude are pruned while it trains.

  `update(gradients, state, params, *, step=None)`: gradients are already averaged over devices, `step` counts optimizer
  updates so far; without it the state counts them. Masks are made from `params` as they come in, and the update takes
  pruned ones to exactly zero. See wrapper.py for what may enclose the result.

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
    stacked: ordered (glob, axis or axes) pairs over leaf names, or a dict of them (as of `graph.stacked_axes`), for
      leaves that hold many layers, such as the kernels (layers, in, out) of a scan; a glob alone stands for axis 0, and
      () for none. Each layer counts by itself: it keeps its own largest weights, and an allocation is given it as
      "blocks/kernel[0]" and so on.
    pack_axis: the axis along which masks are bit-packed.

  Returns:
    An optax transformation whose state is a `sparsity.SparsityState`.

  Raises:
    UserError: neither or both of density and threshold, a density outside (0, 1], a negative threshold, an unknown
      allocation, numbers that are none; at `init`, a rule that matches nothing.
  """
  schedule = check_schedule(one_shot() if schedule is None else schedule)
  _check(density, threshold, allocation)
  ranges.check("sparsity.magnitude: pack_axis", pack_axis, ranges.whole(-32))
  steps = np.asarray(schedule.steps, np.int32)

  def groups(params: Any) -> tuple[dict[int, Chosen], list[Group]]:
    chosen = select(params, rules, stacked)
    if threshold is None:
      return chosen, _count_groups(chosen, density, allocation, schedule)
    rise = 1 - np.asarray(schedule.remaining)[:, None]
    own = {i: _own(one, threshold, ranges.NOT_NEGATIVE) for i, one in chosen.items()}
    return chosen, [Group((i,), np.asarray(rise * level, np.float32)) for i, level in own.items()]

  def start(params: Any) -> Any:
    leaves, treedef = jax.tree.flatten(params)
    pruned = {i for group in groups(params)[1] for i in group.leaves}
    return treedef.unflatten(
      [pack(jnp.ones(leaf.shape, bool), pack_axis) if i in pruned else None for i, leaf in enumerate(leaves)]
    )

  def due(step: jax.Array) -> jax.Array:
    return jnp.sum(jnp.asarray(steps) <= step, dtype=jnp.int32)

  def renew(params: Any, gradients: Any, masks: Any, wanted: jax.Array) -> Any:
    del gradients
    leaves, treedef = jax.tree.flatten(params)
    made = treedef.flatten_up_to(masks)
    chosen, all_groups = groups(params)
    levels = [(group.leaves, jnp.asarray(group.levels)[wanted - 1]) for group in all_groups]
    rows = {i: chosen[i].rows(leaves[i]) for members, _ in levels for i in members}
    if threshold is None:
      new = _largest(rows, levels)
    else:
      new = {i: _reaches(rows[i], level) for (i,), level in levels}
    for i, mask in new.items():
      made[i] = pack(chosen[i].whole(mask), pack_axis)
    return treedef.unflatten(made)

  return wrap(inner, start, due, renew)


def _check(density: float | None, threshold: float | None, allocation: Allocation) -> None:
  if (density is None) == (threshold is None):
    raise UserError("sparsity.magnitude needs either density= or threshold=, and not both")
  if density is not None:
    check_density("density", density)
  if threshold is not None:
    ranges.check("threshold", threshold, ranges.NOT_NEGATIVE)
  if threshold is not None and allocation != "uniform":
    raise UserError("allocation= shares out a density; a threshold has none to share out")
  if not callable(allocation) and allocation not in (*ALLOCATIONS, GLOBAL):
    raise unknown("allocation", allocation, {*ALLOCATIONS, GLOBAL})


def _own(one: Chosen, all_of_them: float, expected: ranges.Range) -> float:
  """The number of a leaf's own rule, or what holds for all."""
  if one.setting is True:
    return float(all_of_them)
  ranges.check(f"the sparsity rule's number for {one.name!r}", one.setting, expected)
  return float(one.setting)


def _count_groups(
  chosen: dict[int, Chosen], density: float | None, allocation: Allocation, schedule: Schedule
) -> list[Group]:
  """Groups with their kept counts; leaves that stay dense throughout are in none, and get no mask."""
  assert density is not None
  together = {i: one for i, one in chosen.items() if one.setting is True}
  final: dict[tuple[int, ...], list[float]] = {}
  for i, one in chosen.items():
    if one.setting is not True:
      final[(i,)] = [check_density(f"the density of {one.name!r}", one.setting)] * one.layers
  if together and allocation == GLOBAL:
    final[tuple(together)] = [density]
  elif together:
    share = ALLOCATIONS[allocation] if isinstance(allocation, str) else allocation
    shares = share({name: one.layer_shape for one in together.values() for name in one.layer_names}, density)
    if not isinstance(shares, Mapping):
      raise UserError(f"the allocation gives {shares!r}; expected a dict of densities by name")
    for i, one in together.items():
      if lost := [name for name in one.layer_names if name not in shares]:
        raise UserError(f"the allocation gives {lost[0]!r} no density; expected one for each name that it is given")
      final[(i,)] = [check_density(f"the density of {name!r}", shares[name]) for name in one.layer_names]

  def levels(leaves: tuple[int, ...], densities: list[float]) -> np.ndarray:
    size = sum(chosen[i].leaf.size for i in leaves) // len(densities)
    return np.stack([counts(size, schedule.densities(d)) for d in densities], axis=1)

  return [
    Group(leaves, levels(leaves, densities))
    for leaves, densities in final.items()
    if min(densities) < 1 or schedule.initial < 1
  ]


def _largest(rows: dict[int, jax.Array], levels: list[tuple[tuple[int, ...], jax.Array]]) -> dict[int, jax.Array]:
  """The masks of (layers, entries) leaves, by leaf; `levels`: leaves, and how many to keep of all, or of each layer."""
  new: dict[int, jax.Array] = {}
  small: list[tuple[int, jax.Array]] = []
  for members, keep in levels:
    first = rows[members[0]]
    if len(keep) != len(first) or len(members) > 1:  # ranked as one
      new |= dict(zip(members, topk_mask([rows[i] for i in members], keep[0]), strict=True))
    elif len(first) == 1 or first.shape[1] <= SMALL:
      small.append((members[0], keep))
    else:  # one program for all layers
      new[members[0]] = jax.vmap(topk_mask)(first, keep)
  if small:
    masks = iter(topk_masks([row for i, _ in small for row in rows[i]], jnp.concatenate([keep for _, keep in small])))
    new |= {i: jnp.stack([next(masks) for _ in rows[i]]) for i, _ in small}
  return new


def _reaches(rows: jax.Array, level: jax.Array) -> jax.Array:
  size = jnp.abs(rows.astype(jnp.float64 if rows.dtype == jnp.float64 else jnp.float32))
  return size >= jnp.minimum(level.astype(size.dtype), jnp.max(size, axis=1, keepdims=True))
