"""Dynamic sparse training: sparse from the start to the end, with a mask that moves.

At each mask update a part of the kept entries is dropped, those of smallest score, and as many others are grown, those
of largest score among all that are then not kept. So the number of kept entries never changes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from leanax.core import ranges
from leanax.core.errors import UserError
from sparsity.criteria import Score, random
from sparsity.levels import Allocation, Group, target
from sparsity.masking import all_kept, maker
from sparsity.packed import unpack
from sparsity.patterns import unstructured
from sparsity.ranking import Ranking, largest
from sparsity.schedules import Schedule, check_schedule, one_shot
from sparsity.select import KERNELS, Chosen, Setting, Stacked, select
from sparsity.wrapper import wrap


def dynamic(
  inner: optax.GradientTransformation,
  drop: Score,
  grow: Score,
  fraction: float | Callable[[int], Any],
  schedule: Schedule,
  *,
  density: float,
  allocation: Allocation = "erk",
  rules: Sequence[tuple[str, Setting]] = KERNELS,
  stacked: Stacked = (),
  pack_axis: int = -1,
  seed: int | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Wraps an optimizer so that it trains a sparse network whose mask moves. No paper.

  The masks of `init` keep random entries. The first update takes the others to zero; to begin with them at zero, train
  `sparsity.apply_masks(sparsity.masks(state), params)`. An entry that was not kept before starts from zero, with zero
  slots, and one that is dropped and grown in the same update keeps both. `update` is that of `sparsity.prune`.

  Args:
    inner: any optax optimizer.
    drop: a criterion; the kept entries of smallest score are dropped.
    grow: a criterion; the entries of largest score are grown.
    fraction: of the kept entries that is dropped, rounded down: a number from 0 to 1, or a function of the optimizer
      updates so far, such as `optax.cosine_decay_schedule(0.3, end)`; it is called once for each mask update, here.
    schedule: when masks move, such as `sparsity.schedules.periodic(every=100, end=7500)`. Of several mask updates that
      fall due at once, in a stage that starts late, the last one is made.
    density: the part of the chosen weights that is kept, in (0, 1], as of `sparsity.prune`.
    allocation: the same.
    rules: the same.
    stacked: the same.
    pack_axis: the same.
    seed: of the first masks, and of criteria that draw random numbers; None: the first masks are those of 0, and
      criteria draw by the argument `seed=` of `update`, as in `sparsity.prune`.

  Returns:
    An optax transformation whose state is a `sparsity.SparsityState`.

  Raises:
    UserError: as `sparsity.prune`, a fraction outside [0, 1], and a schedule on which the density falls.
  """
  schedule, pattern = check_schedule(schedule), unstructured()
  if any(schedule.remaining):
    raise UserError(f"the density of a mask that moves is constant, but {schedule} lets it fall; expected periodic")
  goal = target(density, None, allocation, pattern)
  ranges.check("sparsity: pack_axis", pack_axis, ranges.whole(-32))
  drops, grows, begins = (
    maker(score, pattern, seed, what) for score, what in ((drop, "drop"), (grow, "grow"), (random(), "start"))
  )
  steps, parts = np.asarray(schedule.steps, np.int32), _fractions(fraction, schedule)

  def start(params: Any) -> Any:
    chosen = select(params, rules, stacked)
    groups = goal.groups(chosen, one_shot())
    rankings = [group.at(jnp.int32(0)) for group in groups]
    rows = begins.rows(chosen, rankings, params, None, (), jnp.int32(0), 0)
    return begins.masks(params, chosen, begins.largest(rows, rankings), all_kept(params, groups, pack_axis), pack_axis)

  def due(step: jax.Array) -> jax.Array:
    return jnp.sum(jnp.asarray(steps) <= step, dtype=jnp.int32)

  def renew(params: Any, gradients: Any, masks: Any, memory: Any, step: jax.Array, wanted: jax.Array, seed: Any) -> Any:
    chosen = select(params, rules, stacked)
    groups = goal.groups(chosen, one_shot())
    kept = _rows_of(params, masks, chosen, groups)
    number = [_dropped(group, parts).at(wanted - 1) for group in groups]
    rest = [one._replace(level=group.levels[0] - one.level) for group, one in zip(groups, number, strict=True)]
    trees = (params, gradients)
    rows = drops.rows(chosen, number, *trees, _part(memory, params, 0), step, wanted, seed)
    stay = _among(kept, rows, rest, drops.score)
    rows = grows.rows(chosen, number, *trees, _part(memory, params, 1), step, wanted, seed)
    grown = _among({i: ~mask for i, mask in stay.items()}, rows, number, grows.score)
    return drops.masks(params, chosen, {i: stay[i] | grown[i] for i in stay}, masks, pack_axis)

  return wrap(inner, start, due, renew, score=_both(drop, grow), regrows=True)


def _fractions(fraction: float | Callable[[int], Any], schedule: Schedule) -> np.ndarray:
  with jax.ensure_compile_time_eval():
    found = [np.asarray(fraction(step)) if callable(fraction) else fraction for step in schedule.steps]
  for one in found:
    ranges.check("sparsity.dynamic: fraction", one, ranges.SHARE)
  return np.asarray(found, np.float64)[:, None]


def _dropped(group: Group, parts: np.ndarray) -> Group:
  """Returns the counts that are dropped at each mask update; rounded first, for 0.29 * 100 is below 29."""
  return group._replace(levels=np.floor(np.round(parts * group.levels, 6)).astype(np.int32))


def _rows_of(params: Any, masks: Any, chosen: dict[int, Chosen], groups: Sequence[Group]) -> dict[int, jax.Array]:
  flat = jax.tree.structure(params).flatten_up_to(masks)
  return {i: _split(chosen[i], unpack(flat[i])) for group in groups for i in group.leaves}


def _split(one: Chosen, mask: jax.Array) -> jax.Array:
  return one.apart(mask).reshape(one.layers, -1)


def _among(
  allowed: dict[int, jax.Array], rows: dict[int, jax.Array], rankings: Sequence[Ranking], score: Score
) -> dict[int, jax.Array]:
  """Returns the masks of the largest scores among the entries that are allowed."""
  scores = {}
  for i, row in rows.items():
    least = jnp.asarray(jnp.finfo(row.dtype).min, row.dtype)
    own = jnp.maximum(jnp.abs(row) if score.absolute else row, least)
    scores[i] = jnp.where(allowed[i], own, -jnp.inf)
  return largest(scores, rankings, signed=True)


def _both(drop: Score, grow: Score) -> Score:
  """Returns a criterion with the memories of both."""
  if drop.update is None and grow.update is None:
    return drop

  def update(memory: Any, w: jax.Array, g: jax.Array) -> Any:
    return tuple(m if s.update is None else s.update(m, w, g) for s, m in zip((drop, grow), memory, strict=True))

  return Score(drop.score, lambda w: (drop.init(w), grow.init(w)), update)


def _part(memory: Any, params: Any, index: int) -> Any:
  """Returns the part of the memory that is of one of them."""
  treedef = jax.tree.structure(params)
  if isinstance(memory, tuple) and not memory:
    return ()
  return treedef.unflatten([m if m is None else m[index] for m in treedef.flatten_up_to(memory)])
