"""n of every m consecutive inputs (Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks",
arXiv:2102.04010), as sparse tensor cores read them (2:4).

Groups lie along the axis that is summed over, never across rows. Among equals the earlier entry is kept.
"""

import fnmatch
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from leanax.core import ranges
from leanax.core.errors import UserError
from sparsity.patterns.base import Pattern


def n_m(n: int = 2, m: int = 4, axis: int | Sequence[tuple[str, int]] = -2) -> Pattern:
  """Keeps n of every m consecutive entries along the input axis.

  On a schedule it keeps m first and fewer at each mask update, until n are left.

  Args:
    n: entries that are kept in each group, 1 to m.
    m: entries of a group.
    axis: the input axis of a layer, among the axes that the leaf has beside those of `stacked=`: -2 in flax's Dense,
      Conv and attention's output kernels. Or ordered (glob, axis) pairs over leaf names, first match wins.

  Raises:
    UserError: n and m that are no such numbers; at `init`, a leaf without the axis or a pair for it, or of a length
      that m does not divide.
  """
  ranges.check("n_m: n", n, ranges.whole(1))
  ranges.check("n_m: m", m, ranges.whole(1))
  if n > m:
    raise UserError(f"n_m: n is {n} and m is {m}; expected n of 1 to m")
  pairs = [("*", axis)] if isinstance(axis, int) else axis
  if isinstance(pairs, str) or not isinstance(pairs, Sequence) or not all(map(_is_pair, pairs)):
    raise UserError(f"n_m: axis is {axis!r}; expected a whole number, or (glob, axis) pairs")

  def place(name: str, shape: tuple[int, ...]) -> int:
    found = next((axis for glob, axis in pairs if fnmatch.fnmatchcase(name, glob)), None)
    if found is None:
      raise UserError(f"n_m: no pair of axis= is for {name!r}; expected its input axis")
    if not -len(shape) <= found < len(shape):
      raise UserError(f"n_m: the axis {found!r} does not exist in {name!r} of shape {shape}; expected its input axis")
    if not math.prod(shape):
      raise UserError(f"n_m: {name!r} of shape {shape} has no entries; leave it out by rules=")
    if shape[found] % m:
      raise UserError(
        f"n_m: {name!r} has {shape[found]} inputs, which groups of {m} do not divide; leave it out by rules="
      )
    return found % len(shape)

  def units(name: str, shape: tuple[int, ...]) -> int:
    place(name, shape)
    return m

  def split(name: str, scores: jax.Array) -> jax.Array:
    return jnp.moveaxis(scores, 1 + place(name, scores.shape[1:]), -1).reshape(-1, m)

  def join(name: str, mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    at = place(name, shape)
    rest = shape[:at] + shape[at + 1 :]
    return jnp.moveaxis(mask.reshape(-1, *rest, shape[at]), -1, 1 + at)

  return Pattern(units, split, join, density=n / m)


def _is_pair(pair: object) -> bool:
  return isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], int)
