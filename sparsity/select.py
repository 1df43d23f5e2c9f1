"""Which parameters a sparse method prunes."""

from collections.abc import Sequence
from typing import Any

import jax

from core import rules as path_rules
from core import trees
from core.errors import UserError

Setting = bool | float
KERNELS: tuple[tuple[str, Setting], ...] = (("*kernel", True),)


def select(params: Any, rules: Sequence[tuple[str, Setting]]) -> dict[int, tuple[str, jax.Array, Setting]]:
  """The leaves that rules choose: {index in the tree's leaves: (name, leaf, setting)}; those set to False are left out.

  In a tree of groups, {"params": ..., "qparams": ..., "aux": ...}, only `params` is pruned, whatever the others' leaves
  are called; names lack the leading "params/".

  Raises:
    UserError: a rule that matches nothing or never applies, or a chosen scalar.
  """
  names = list(trees.named_leaves(params))
  prefix = "params/" if any(name.startswith("params/") for name in names) else ""
  leaves = {
    name.removeprefix(prefix): (i, leaf)
    for i, (name, leaf) in enumerate(zip(names, jax.tree.leaves(params), strict=True))
    if name.startswith(prefix)
  }
  chosen = {}
  for name, found in path_rules.match(rules, leaves, "sparsity rule").items():
    index, leaf = leaves[name]
    if found.setting is False:
      continue
    if not leaf.ndim:
      raise UserError(f"sparsity rule {found.glob!r} matches {name!r}, a scalar, which has nothing to prune")
    chosen[index] = (name, leaf, found.setting)
  return chosen
