"""Pruning while training: at each mask update of a schedule the entries of largest score are kept.

The density at that step says how many, or a threshold says which. Where we differ from Zhu & Gupta's
implementation (arXiv:1710.01878): pruned weights are zero and no longer train, so by their magnitude they do not come
back while the density falls. By a criterion that reads gradients they may, and start again from zero. No paper.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from leanax.core import ranges
from sparsity.criteria import Score
from sparsity.levels import Allocation, target
from sparsity.masking import all_kept, maker
from sparsity.patterns import Pattern, unstructured
from sparsity.schedules import Schedule, check_schedule, one_shot
from sparsity.select import KERNELS, Setting, Stacked, select
from sparsity.wrapper import wrap


def prune(
  inner: optax.GradientTransformation,
  score: Score,
  pattern: Pattern | None = None,
  allocation: Allocation = "uniform",
  schedule: Schedule | None = None,
  *,
  density: float | None = None,
  threshold: float | None = None,
  rules: Sequence[tuple[str, Setting]] = KERNELS,
  stacked: Stacked = (),
  pack_axis: int = -1,
  seed: int | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Wraps an optimizer so that weights of small score are pruned while it trains.

  `update(gradients, state, params, *, step=None, seed=None)`: gradients are already averaged over devices, `step`
  counts optimizer updates so far; without it the state counts them. Masks are made from `params` as they come in, and
  the update takes pruned ones to exactly zero. See wrapper.py for what may enclose the result.

  Args:
    inner: any optax optimizer.
    score: a criterion, such as `sparsity.criteria.magnitude()`.
    pattern: which entries are ranked together, such as `sparsity.patterns.n_m(2, 4)`; None: all of a layer.
    allocation: how `density` is shared out: "uniform", "er", "erk", or a function (shapes by name, density) ->
      densities by name; "global", one ranking over all chosen leaves, which may leave a layer without weights, or
      "global_normalised" and "lamp", the same of scores normalised within each layer.
    schedule: `sparsity.one_shot(at)` or `sparsity.cubic(start, end, every)`; None prunes in the first update. With a
      threshold the schedule takes the threshold from 0 to its end value.
    density: the part of the chosen weights that is kept in the end, in (0, 1]; a leaf of n entries keeps
      max(1, n * density rounded half to even), and among equal scores the lower flat index. None where the pattern
      fixes it.
    threshold: instead of a density, the score (or magnitude of a score) from which on a weight is kept in the end; a
      leaf's largest always is.
    rules: ordered (glob, setting) pairs over leaf names, first match wins. True: prune; False, and no match: leave
      alone; a number: prune to this density (or threshold) of its own, outside the allocation.
    stacked: ordered (glob, axis or axes) pairs over leaf names, or a dict of them (as of `graph.stacked_axes`), for
      leaves that hold many layers, such as the kernels (layers, in, out) of a scan; a glob alone stands for axis 0, and
      () for none. Each layer counts by itself: it keeps its own largest weights, and an allocation is given it as
      "blocks/kernel[0]" and so on.
    pack_axis: the axis along which masks are bit-packed.
    seed: of criteria that draw random numbers; None: the argument `seed=` of `update`, which `engine.training` gives
      it, or 0.

  Returns:
    An optax transformation whose state is a `sparsity.SparsityState`.

  Raises:
    UserError: neither or both of density and threshold, a density outside (0, 1], a negative threshold, an unknown
      allocation, values that are not numbers; at `init`, a rule that matches nothing, or a leaf that the pattern
      cannot serve.
  """
  schedule = check_schedule(one_shot() if schedule is None else schedule)
  make = maker(score, unstructured() if pattern is None else pattern, seed)
  goal = target(density, threshold, allocation, make.pattern)
  ranges.check("sparsity: pack_axis", pack_axis, ranges.whole(-32))
  steps = np.asarray(schedule.steps, np.int32)

  def start(params: Any) -> Any:
    return all_kept(params, goal.groups(select(params, rules, stacked), schedule), pack_axis)

  def due(step: jax.Array) -> jax.Array:
    return jnp.sum(jnp.asarray(steps) <= step, dtype=jnp.int32)

  def renew(params: Any, gradients: Any, masks: Any, memory: Any, step: jax.Array, wanted: jax.Array, seed: Any) -> Any:
    chosen = select(params, rules, stacked)
    rankings = [group.at(wanted - 1) for group in goal.groups(chosen, schedule)]
    rows = make.rows(chosen, rankings, params, gradients, memory, step, 0, seed)
    made = make.reaching(rows, rankings) if threshold is not None else make.largest(rows, rankings)
    return make.masks(params, chosen, made, masks, pack_axis)

  return wrap(inner, start, due, renew, score=score)
