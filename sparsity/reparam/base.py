"""Reparameterizations that train one array, of thresholds, beside each leaf that rules name."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from leanax.core import ranges
from leanax.core.errors import UserError
from leanax.graph.kinds import Reparam
from sparsity.select import Chosen, Setting, Stacked, select
from sparsity.state import pure


def by_leaf(
  name: str,
  noun: str,
  initial: float,
  rules: Sequence[tuple[str, Setting]],
  stacked: Stacked,
  *,
  shape: Callable[[Chosen], tuple[int, ...]],
  weights: Callable[[jax.Array, jax.Array], jax.Array],
  term: Callable[[jax.Array], jax.Array],
  strength: float,
) -> Reparam:
  """Returns the reparameterization; its aux is {leaf's name: array}, float64 beside a float64 leaf, else float32.

  Args:
    name: of the method, for errors.
    noun: for a leaf's array, for errors.
    initial: the arrays' value at the start, where a rule says True and no number of its own.
    rules: as of `sparsity.prune`.
    stacked: as of `sparsity.prune`.
    shape: of a leaf's array.
    weights: (leaf, its array) -> the weights that the model is applied with, of the leaf's shape and dtype.
    term: of the penalty, which is the strength times the sum of the terms of all arrays' numbers.
    strength: of the penalty.

  Raises:
    UserError: `initial` is not finite; at `init`, a rule that matches nothing, or whose number is not finite.
  """
  ranges.check(f"{name}: initial", initial, ranges.FINITE)

  def start(one: Chosen) -> jax.Array:
    if one.setting is not True:
      ranges.check(f"the number of {one.name!r} in {name}'s rules", one.setting, ranges.FINITE)
    dtype = "float64" if one.leaf.dtype == jnp.float64 else "float32"
    return jnp.full(shape(one), initial if one.setting is True else one.setting, dtype)

  def init(params: Any) -> dict[str, jax.Array]:
    return {one.name: start(one) for one in select(pure(params), rules, stacked).values()}

  def forward(params: Any, aux: Any, *, step: Any, key: Any, train: bool) -> tuple[Any, dict[str, Any]]:
    del step, key, train
    leaves, treedef = jax.tree.flatten(params)
    for i, one in select(pure(params), rules, stacked).items():
      if one.name not in aux:
        raise UserError(f"{name}: aux has no {noun} of {one.name!r}; expected what init(params) returns")
      leaves[i] = weights(leaves[i], aux[one.name])
    return treedef.unflatten(leaves), {}

  def penalty(aux: Any) -> jax.Array:
    sums = [jnp.sum(term(array)) for array in jax.tree.leaves(aux)]
    return strength * sum(sums[1:], sums[0]) if sums else jnp.zeros(())

  return Reparam(init, forward, penalty)
