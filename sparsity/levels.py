"""The number that each mask update keeps of each leaf: counts or thresholds, computed once, on the host."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core import ranges
from leanax.core.errors import UserError, unknown
from sparsity import allocations
from sparsity.allocations import check_density, counts
from sparsity.patterns import Pattern
from sparsity.ranking import Ranking
from sparsity.schedules import Schedule
from sparsity.select import Chosen

Allocation = str | Callable[[allocations.Shapes, float], Mapping[str, float]]
ALLOCATIONS = {"uniform": allocations.uniform, "er": allocations.er, "erk": allocations.erk}
# Those that rank all layers as one, with how scores are normalised within a layer first.
AS_ONE = {"global": None, "global_normalised": allocations.global_normalised, "lamp": allocations.lamp}


class Group(NamedTuple):
  """Leaves (indices among the tree's) that are ranked as one, or the layers of one leaf, each by itself.

  `levels` is what each mask update keeps of them: int32 counts of a pool, or float32 thresholds, (updates, 1) as one,
  or of one leaf (updates, layers). `normalise` is that of `Ranking`.
  """

  leaves: tuple[int, ...]
  levels: np.ndarray
  as_one: bool = False
  normalise: Callable[[jax.Array], jax.Array] | None = None

  def at(self, update: jax.Array) -> Ranking:
    """Returns what mask update number `update` keeps."""
    return Ranking(self.leaves, jnp.asarray(self.levels)[update], self.as_one, self.normalise)


class Target(NamedTuple):
  """The target: a density and its allocation, a threshold, or the density that the pattern fixes."""

  density: float | None
  threshold: float | None
  allocation: Allocation
  pattern: Pattern

  def groups(self, chosen: Mapping[int, Chosen], schedule: Schedule) -> list[Group]:
    """Returns the groups of leaves; those that stay dense throughout are in none, and get no mask.

    Raises:
      UserError: a leaf's own number that is out of range, or an allocation that leaves one out.
    """
    if self.threshold is not None:
      rise = 1 - np.asarray(schedule.remaining)[:, None]
      return [Group((i,), np.asarray(rise * self._own(one, self.threshold), np.float32)) for i, one in chosen.items()]
    return [
      Group(
        leaves, self._counts(chosen, leaves, densities, as_one, schedule), as_one, self._normalise if as_one else None
      )
      for leaves, densities, as_one in self._densities(chosen)
      if min(densities) < 1 or schedule.initial < 1
    ]

  @property
  def _normalise(self) -> Callable[[jax.Array], jax.Array] | None:
    return AS_ONE.get(self.allocation) if isinstance(self.allocation, str) else None

  def _own(self, one: Chosen, threshold: float) -> float:
    """Returns the number of a leaf's own rule, or what holds for all."""
    if one.setting is True:
      return float(threshold)
    ranges.check(f"the sparsity rule's number for {one.name!r}", one.setting, ranges.NOT_NEGATIVE)
    return float(one.setting)

  def _densities(self, chosen: Mapping[int, Chosen]) -> list[tuple[tuple[int, ...], list[float], bool]]:
    """Returns (leaves, densities, whether they are ranked as one): a density for all of them or for each layer."""
    if (fixed := self.pattern.density) is not None:
      for one in chosen.values():
        if one.setting is not True:
          raise UserError(f"the sparsity rule of {one.name!r} gives {one.setting!r}, but the pattern fixes its density")
      return [((i,), [fixed] * one.layers, False) for i, one in chosen.items()]
    assert self.density is not None
    together = {i: one for i, one in chosen.items() if one.setting is True}
    found: list[tuple[tuple[int, ...], list[float], bool]] = [
      ((i,), [check_density(f"the density of {one.name!r}", one.setting)] * one.layers, False)
      for i, one in chosen.items()
      if one.setting is not True
    ]
    if not together:
      return found
    if isinstance(self.allocation, str) and self.allocation in AS_ONE:
      return [*found, (tuple(together), [self.density], True)]
    share = ALLOCATIONS[self.allocation] if isinstance(self.allocation, str) else self.allocation
    shares = share({name: one.layer_shape for one in together.values() for name in one.layer_names}, self.density)
    if not isinstance(shares, Mapping):
      raise UserError(f"the allocation gives {shares!r}; expected a dict of densities by name")
    for one in together.values():
      if lost := [name for name in one.layer_names if name not in shares]:
        raise UserError(f"the allocation gives {lost[0]!r} no density; expected one for each name that it is given")
    for i, one in together.items():
      found.append(((i,), [check_density(f"the density of {name!r}", shares[name]) for name in one.layer_names], False))
    return found

  def _counts(
    self,
    chosen: Mapping[int, Chosen],
    leaves: tuple[int, ...],
    densities: list[float],
    as_one: bool,
    schedule: Schedule,
  ) -> np.ndarray:
    """Returns (updates, densities) kept counts: of a pool, or of all units that are ranked as one."""
    units = [self.pattern.units(chosen[i].name, chosen[i].layer_shape) for i in leaves]
    size = sum(n * chosen[i].layers for n, i in zip(units, leaves, strict=True)) if as_one else units[0]
    return np.stack([counts(size, schedule.densities(density)) for density in densities], axis=1)


def target(density: float | None, threshold: float | None, allocation: Allocation, pattern: Pattern) -> Target:
  """Returns the target.

  Raises:
    UserError: neither or both of density and threshold, or one of them with a pattern that fixes its density; numbers
      out of range; an unknown allocation, or one that has no density to share out.
  """
  if pattern.density is not None:
    if density is not None or threshold is not None or allocation != "uniform":
      raise UserError(f"the pattern fixes its density, {pattern.density}; expected no density, threshold or allocation")
    return Target(None, None, allocation, pattern)
  if (density is None) == (threshold is None):
    raise UserError("a sparse method needs either density= or threshold=, and not both")
  if callable(allocation):  # a function of scores, and not of shapes, stands for its name
    allocation = next((name for name, fn in AS_ONE.items() if fn is allocation), allocation)
  if density is not None:
    check_density("density", density)
  if threshold is not None:
    ranges.check("threshold", threshold, ranges.NOT_NEGATIVE)
  if threshold is not None and allocation != "uniform":
    raise UserError("allocation= shares out a density; a threshold has none to share out")
  if not callable(allocation) and allocation not in (*ALLOCATIONS, *AS_ONE):
    raise unknown("allocation", allocation, {*ALLOCATIONS, *AS_ONE})
  return Target(density, threshold, allocation, pattern)
