"""Pruning a trained model at once: the entries of smallest score become zero, and no optimizer is needed. No paper."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from leanax import graph
from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from sparsity.criteria import Score
from sparsity.criteria import magnitude as by_magnitude
from sparsity.levels import Allocation, target
from sparsity.masking import all_kept, maker
from sparsity.patterns import Pattern, unstructured
from sparsity.schedules import one_shot
from sparsity.select import KERNELS, Chosen, Setting, Stacked, select
from sparsity.state import apply_masks, pure


def mask(
  net: Any,
  score: Score | None = None,
  pattern: Pattern | None = None,
  allocation: Allocation = "uniform",
  *,
  density: float | None = None,
  threshold: float | None = None,
  gradients: Any = None,
  rules: Sequence[tuple[str, Setting]] = KERNELS,
  stacked: Stacked = (),
  seed: int = 0,
) -> Any:
  """Returns the net with zeros where its parameters are pruned; `sparsity.hold` keeps these in later training.

  Args:
    net: a `graph.Net`; or a tree of arrays, such as linen's variables, which is returned with zeros. Of variables that
      have "params" these are pruned.
    score: a criterion; None: the magnitude.
    pattern: as of `sparsity.prune`.
    allocation: the same.
    density: the same.
    threshold: the same.
    gradients: of the structure of the net's variables, or of the tree, for a criterion that reads them: of the mean
      loss over some batches, say.
    rules: as of `sparsity.prune`.
    stacked: the same; of a net `graph.stacked_axes` finds it where none is given.
    seed: of criteria that draw random numbers.

  Raises:
    UserError: as `sparsity.prune`, and gradients that are missing, of another structure or, outside jit, not finite.
  """
  if isinstance(net, graph.Net):
    found = stacked or _stacked(net)
    rest: Any = {"density": density, "threshold": threshold, "gradients": gradients, "rules": rules, "seed": seed}
    return net.edited((), mask(net.variables, score, pattern, allocation, stacked=found, **rest))
  make = maker(by_magnitude() if score is None else score, unstructured() if pattern is None else pattern, seed)
  score = make.score
  goal = target(density, threshold, allocation, make.pattern)
  tree = pure(net)
  if score.reads_gradient and jax.tree.map(jnp.shape, pure(gradients)) != jax.tree.map(jnp.shape, tree):
    what = "are missing" if gradients is None else "have another structure or other shapes than the parameters"
    raise UserError(
      f"sparsity.mask: the gradients {what}; expected one for each parameter, unless the "
      "criterion says reads_gradient=False"
    )
  chosen = select(tree, rules, stacked)
  if score.reads_gradient:
    _refuse_not_finite(chosen, jax.tree.leaves(pure(gradients)))
  groups = goal.groups(chosen, one_shot())
  rankings = [group.at(jnp.int32(0)) for group in groups]
  memory: Any = ()
  if (update := score.update) is not None:
    leaves, treedef = jax.tree.flatten(tree)
    grads = treedef.flatten_up_to(pure(gradients)) if score.reads_gradient else [None] * len(leaves)
    memory = treedef.unflatten([update(score.init(w), w, g) for w, g in zip(leaves, grads, strict=True)])
  rows = make.rows(chosen, rankings, tree, pure(gradients), memory, jnp.int32(0), 0)
  made = make.reaching(rows, rankings) if threshold is not None else make.largest(rows, rankings)
  return apply_masks(make.masks(tree, chosen, made, all_kept(tree, groups, -1), -1), net)


def _refuse_not_finite(chosen: Mapping[int, Chosen], gradients: Sequence[Any]) -> None:
  """Refuses gradients by which nothing can be ranked; inside jit their numbers are not known."""
  for i, one in chosen.items():
    if not isinstance(gradients[i], jax.core.Tracer):
      with jax.ensure_compile_time_eval():  # numbers that are known in a function that is traced
        finite = bool(jnp.all(jnp.isfinite(gradients[i])))
      if not finite:
        raise UserError(f"sparsity.mask: the gradient of {one.name!r} holds NaN or infinity; expected finite numbers")


def _stacked(net: graph.Net) -> dict[str, tuple[int, ...]]:
  """Returns the axes along which parameters hold layers."""
  variables = net.variables
  params = variables["params"] if isinstance(variables, Mapping) and "params" in variables else variables
  axes = graph.stacked_axes(net.infer, variables, *net.example)
  return {name: found for name, found in axes.items() if name in named_leaves(params)}
