"""From scores to masks of a tree of parameters: what pruning while training and afterwards share."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from leanax.core import keys, ranges
from sparsity.criteria import Score, check_score
from sparsity.criteria.base import wide
from sparsity.levels import Group
from sparsity.packed import pack
from sparsity.patterns import Pattern, check_pattern
from sparsity.ranking import Ranking, largest, reaches
from sparsity.select import Chosen


class Maker(NamedTuple):
  """Makes masks by a criterion, in a pattern; leaves are named by their index in the tree's leaves."""

  score: Score
  pattern: Pattern
  seed: int | None
  stream: str

  def rows(
    self,
    chosen: Mapping[int, Chosen],
    rankings: Iterable[Ranking],
    params: Any,
    gradients: Any,
    memory: Any,
    step: jax.Array,
    number: int | jax.Array,
    seed: Any = None,
  ) -> dict[int, jax.Array]:
    """Returns the scores of the leaves that are ranked, (pools, units) by leaf.

    Args:
      chosen: the leaves that may be pruned.
      rankings: those that are.
      params: the parameters.
      gradients: of their structure; not looked at unless the criterion reads them.
      memory: of their structure, the criterion's memory at each ranked leaf; () where it has none.
      step: optimizer updates so far.
      number: of the draw, for criteria that draw random numbers.
      seed: of the draw, where the maker has none of its own; None for 0.
    """
    leaves, treedef = jax.tree.flatten(params)
    grads = treedef.flatten_up_to(gradients) if self.score.reads_gradient else [None] * len(leaves)
    memories = [()] * len(leaves) if self.score.update is None else treedef.flatten_up_to(memory)
    own = self.seed if self.seed is not None else 0 if seed is None else seed
    key = keys.step_key(own, number, f"sparsity {self.stream}")
    found = {}
    for i, normalise in ((i, ranking.normalise) for ranking in rankings for i in ranking.leaves):
      name, w = chosen[i].name, leaves[i]
      own = jax.random.fold_in(key, i)
      scores = self.score.of(name, w, grads[i], memories[i], step=step, key=own)
      # One entry of a unit must not cancel another.
      scores = jnp.abs(scores) if (self.pattern.gathers or normalise) and self.score.absolute else scores
      found[i] = self.pattern.split(name, chosen[i].apart(scores))
      if normalise is not None:
        found[i] = normalise(wide(found[i]).reshape(chosen[i].layers, -1)).reshape(found[i].shape)
    return found

  def largest(self, rows: Mapping[int, jax.Array], rankings: Sequence[Ranking]) -> dict[int, jax.Array]:
    """Returns the (pools, units) masks of the largest scores."""
    return largest(rows, rankings, signed=not self.score.absolute)

  def reaching(self, rows: Mapping[int, jax.Array], rankings: Sequence[Ranking]) -> dict[int, jax.Array]:
    """Returns the (pools, units) masks of scores from a threshold on."""
    return {one.leaves[0]: reaches(rows[one.leaves[0]], one.level, signed=not self.score.absolute) for one in rankings}

  def masks(
    self, params: Any, chosen: Mapping[int, Chosen], made: Mapping[int, jax.Array], masks: Any, pack_axis: int
  ) -> Any:
    """Returns the masks tree with the leaves of `made`, (pools, units) bools, in place of what it holds for them."""
    treedef = jax.tree.structure(params)  # of the parameters: they may hold a None themselves, as a bias that is none
    flat = treedef.flatten_up_to(masks)
    for i, mask in made.items():
      one = chosen[i]
      flat[i] = pack(one.whole(self.pattern.join(one.name, mask, one.layer_shape)), pack_axis)
    return treedef.unflatten(flat)


def maker(score: Any, pattern: Any, seed: Any, what: str = "score") -> Maker:
  """Returns the maker of masks by a criterion; `what` names it in errors, and its stream of random numbers.

  Raises:
    UserError: `score` is not a criterion, `pattern` not a pattern, or `seed` not a whole number.
  """
  if seed is not None:
    ranges.check("sparsity: seed", seed, ranges.whole(0))
  return Maker(check_score(what, score), check_pattern(pattern), seed if seed is None else int(seed), what)


def all_kept(params: Any, groups: Iterable[Group], pack_axis: int) -> Any:
  """Returns the masks tree that keeps all, with a mask for the leaves of groups and None for others."""
  leaves, treedef = jax.tree.flatten(params)
  pruned = {i for group in groups for i in group.leaves}
  return treedef.unflatten(
    [pack(jnp.ones(leaf.shape, bool), pack_axis) if i in pruned else None for i, leaf in enumerate(leaves)]
  )
