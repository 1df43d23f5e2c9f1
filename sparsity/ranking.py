"""The masks of many pools of units at once: of each by itself, or of all as one."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparsity.threshold import SMALL, Order, bit_pattern, topk_mask, topk_masks

SHORT = 64  # pools of so few units are ranked by comparing each unit with each


class Ranking(NamedTuple):
  """The entries of some leaves that one mask update keeps.

  Attributes:
    leaves: indices among the tree's leaves; one, unless they are ranked as one.
    level: (1,) for all of them as one, or (layers,) for each layer of the leaf: int32 counts of a pool, or float32
      thresholds.
    as_one: whether all units of all pools are ranked against each other.
    normalise: of (layers, entries) scores within each layer, before they are ranked; None: none.
  """

  leaves: tuple[int, ...]
  level: jax.Array
  as_one: bool
  normalise: Callable[[jax.Array], jax.Array] | None = None


def rank(rows: jax.Array, keep: jax.Array, *, signed: bool) -> jax.Array:
  """Returns the mask of (pools, units): in each pool the `keep` largest, among equals the earlier ones.

  Args:
    rows: (pools, units) floats.
    keep: (layers,) int32, for the pools of each layer.
    signed: False ranks magnitudes.
  """
  keep = jnp.repeat(keep, len(rows) // len(keep), total_repeat_length=len(rows))
  if len(rows) > 1 and rows.shape[1] <= SHORT:
    return _compared(rows, keep, signed)
  if len(rows) == 1:
    return topk_mask(rows[0], keep[0], signed=signed)[None]
  return jax.vmap(functools.partial(topk_mask, signed=signed))(rows, keep)


def largest(rows: Mapping[int, jax.Array], rankings: Sequence[Ranking], *, signed: bool) -> dict[int, jax.Array]:
  """Returns the masks of leaves, by leaf, in the form of `rows`.

  Args:
    rows: (pools, units) scores by leaf.
    rankings: of which `level` are counts.
    signed: False ranks magnitudes.
  """
  new: dict[int, jax.Array] = {}
  small: list[tuple[int, jax.Array]] = []
  for (first, *others), keep, as_one, _ in rankings:
    pools, units = rows[first].shape
    if as_one:
      members = [first, *others]
      new |= dict(zip(members, topk_mask([rows[i] for i in members], keep[0], signed=signed), strict=True))
    elif pools > len(keep) or (pools > 1 and units > SMALL):
      new[first] = rank(rows[first], keep, signed=signed)
    else:
      small.append((first, keep))
  if small:
    flat, counts = [row for i, _ in small for row in rows[i]], jnp.concatenate([keep for _, keep in small])
    masks = iter(topk_masks(flat, counts, signed=signed))
    new |= {i: jnp.stack([next(masks) for _ in rows[i]]) for i, _ in small}
  return new


def reaches(rows: jax.Array, level: jax.Array, *, signed: bool) -> jax.Array:
  """Returns where scores reach a threshold; the largest of each pool always does."""
  scores = rows.astype(jnp.float64 if rows.dtype == jnp.float64 else jnp.float32)
  scores = scores if signed else jnp.abs(scores)
  return scores >= jnp.minimum(level.astype(scores.dtype), jnp.max(scores, axis=1, keepdims=True))


def _compared(rows: jax.Array, keep: jax.Array, signed: bool) -> jax.Array:
  pattern = bit_pattern(rows, Order(rows.dtype, signed)).reshape(rows.shape)
  own, other = pattern[:, :, None], pattern[:, None, :]
  earlier = jnp.tri(rows.shape[1], k=-1, dtype=bool)  # [i, j]: j comes before i
  better = (other > own) | ((other == own) & earlier)
  return jnp.sum(better, axis=2, dtype=jnp.int32) < keep[:, None]
