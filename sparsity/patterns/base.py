"""The kind of a pattern: which entries of a layer are kept or pruned together, and among which they are ranked."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from leanax.core import ranges
from leanax.core.errors import UserError
from sparsity.ranking import rank


@dataclasses.dataclass(frozen=True)
class Pattern:
  """A pattern, from scores to the units that are ranked, and back.

  Attributes:
    units: `units(name, shape)`, how many units are ranked as one in a layer of this shape; raises UserError, by the
      leaf's name, for a shape that it cannot serve.
    split: `split(name, scores)`, from (layers, *shape) to (pools, units), the pools of a layer one after the other.
    join: `join(name, mask, shape)`, from (pools, units) to (layers, *shape).
    density: the part of its units that a pool keeps in the end, where the pattern itself says so.
    gathers: a unit holds several entries, of whose scores `split` makes one; scores that are ranked by their magnitude
      come to it as magnitudes.
  """

  units: Callable[[str, tuple[int, ...]], int]
  split: Callable[[str, jax.Array], jax.Array]
  join: Callable[[str, jax.Array, tuple[int, ...]], jax.Array]
  density: float | None = None
  gathers: bool = False

  def mask(self, scores: jax.Array, keep: int | jax.Array, *, name: str = "scores") -> jax.Array:
    """Returns the bool mask of one layer that keeps the `keep` units of largest score in each pool.

    Args:
      scores: floats of the layer's shape, ranked with their sign; among equals the earlier unit is kept.
      keep: a whole number, from 0 to the units of a pool.
      name: of the leaf, for errors.

    Raises:
      UserError: scores that are no floats, a shape that the pattern cannot serve, or `keep` out of range.
    """
    if not jnp.issubdtype(jnp.result_type(scores), jnp.floating):
      raise UserError(f"the scores of {name!r} are {jnp.result_type(scores)}{list(scores.shape)}; expected floats")
    units = self.units(name, scores.shape)
    if not isinstance(keep, jax.Array):
      ranges.check("the count of a pattern", keep, ranges.whole(0))
      if keep > units:
        raise UserError(
          f"{name!r} has {units} entries to rank in each pool; expected a count in 0..{units}, not {keep}"
        )
    rows = self.split(name, scores[None])
    return self.join(name, rank(rows, jnp.asarray(keep, jnp.int32)[None], signed=True), scores.shape)[0]


def slices(method: str, noun: str, axis: int) -> Pattern:
  """Returns the pattern whose units are all entries at one index of an axis; a unit's score is the sum of theirs.

  Args:
    method: its name, for errors.
    noun: for what lies along the axis, for errors.
    axis: of a layer, among the axes that the leaf has beside those of `stacked=`.
  """
  ranges.check(f"{method}: axis", axis, ranges.whole(-32))

  def units(name: str, shape: tuple[int, ...]) -> int:
    if not -len(shape) <= axis < len(shape) or not math.prod(shape):
      raise UserError(f"{method}: {name!r} of shape {shape} has no {noun} along axis {axis}; leave it out by rules=")
    return shape[axis]

  def split(name: str, scores: jax.Array) -> jax.Array:
    units(name, scores.shape[1:])
    rows = jnp.moveaxis(scores, axis if axis < 0 else axis + 1, 1)
    return jnp.sum(rows.reshape(*rows.shape[:2], -1), axis=2)

  def join(name: str, mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    units(name, shape)
    place = axis % len(shape)
    return jnp.broadcast_to(
      mask.reshape(-1, *(n if i == place else 1 for i, n in enumerate(shape))), (len(mask), *shape)
    )

  return Pattern(units, split, join, gathers=True)


def check_pattern(pattern: Any) -> Pattern:
  """Returns `pattern`.

  Raises:
    UserError: it is not a pattern.
  """
  if not isinstance(pattern, Pattern):
    raise UserError(f"pattern is {pattern!r}; expected such as sparsity.patterns.unstructured()")
  return pattern
