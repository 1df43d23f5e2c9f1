"""Batch norms folded into the dot or convolution before them.

They are found by what they do: a site's output goes, through equations that are affine in it, to the last one whose
coefficients depend on the variables alone. The slope and the offset of that chain are its derivative and its value at
zero, so how the normalisation is spelled does not matter; that they are the same at every position is checked on the
numbers. The site then has the kernel times the slope, and the offset as its bias.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from leanax.graph.affine import Chain, Measured, Users, find_chain, measure, refusal
from leanax.graph.program import leaf_name
from leanax.graph.shapes import beside, leaves_by_name


class Fold(NamedTuple):
  """A chain after a site, and what the site becomes.

  Attributes:
    chain: the chain.
    reason: why it cannot be folded, or "".
    values: the new kernel and bias by name.
    bias: the name of the leaf that is the bias afterwards, and `path` where it is.
  """

  chain: Chain
  reason: str
  values: Mapping[str, np.ndarray] = {}
  bias: str = ""
  path: tuple[Any, ...] = ()


def folds(users: Users, variables: Any) -> list[Fold]:
  """Returns each chain after a site that has a product with variables, in order: how it is folded, or why not."""
  analysis, given = users.analysis, leaves_by_name(variables)
  paths = {leaf_name(path): path for path, _ in jax.tree_util.tree_leaves_with_path(variables)}
  taken, plan = set(given), []
  env = dict(zip(analysis.program.body.inputs, (given[name] for name in analysis.program.leaves), strict=False))
  for site in analysis.sites:
    chain = find_chain(users, site) if site.op.kind in ("dot", "conv") else None
    if chain is None:
      continue
    reason = refusal(users, chain)
    one = None if reason else measure(users, chain, env)
    if one is None:
      plan.append(Fold(chain, reason))
      continue
    name = site.op.inputs[site.op.kernel_index or 0].leaf or ""
    kernel, bias = _scaled(given[name], one)
    path = _own_bias(users, chain, paths, bias.shape) or new_bias(variables, paths[name], taken)
    if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
      plan.append(Fold(chain, f"the numbers would not be finite in {kernel.dtype.name}"))
    elif not one.flat:
      plan.append(Fold(chain, f"it is not the same at every position of what {site.op.name!r} gives"))
    elif path is None:
      plan.append(Fold(chain, f"the kernel of {site.op.name!r} has no place beside it for a bias"))
    else:
      taken.add(leaf_name(path))
      plan.append(Fold(chain, "", {name: kernel, leaf_name(path): bias}, leaf_name(path), path))
  return plan


@np.errstate(all="ignore")  # what is not finite is seen by the caller
def _scaled(kernel: Any, one: Measured) -> tuple[np.ndarray, np.ndarray]:
  """Returns the new kernel and bias, in the kernel's type."""
  return (np.asarray(kernel, np.float64) * one.factor).astype(kernel.dtype), one.offset.astype(kernel.dtype)


def _own_bias(users: Users, chain: Chain, paths: Mapping[str, Any], sizes: tuple[int, ...]) -> Any:
  """Returns the path of the bias of a chain's site, if it has one that nothing else reads."""
  analysis = users.analysis
  for node, place in zip(chain.nodes, chain.places, strict=True):
    if node.primitive != "add" or analysis.value(node.inputs[place]).base != chain.site.node.outputs[0]:
      continue
    leaf = analysis.value(node.inputs[1 - place]).exact
    if leaf is None:
      continue
    number = analysis.program.body.inputs[leaf]
    wide = [n for n in analysis.program.avals[number].shape if n != 1]
    if len(users.readers[number]) == 1 and wide and wide == [n for n in sizes if n != 1]:
      return paths[analysis.program.leaves[leaf]]
  return None


def new_bias(
  variables: Any, kernel: tuple[Any, ...], taken: Collection[str] = (), name: str | None = None
) -> tuple[Any, ...] | None:
  """Returns where a new bias can be, beside the kernel: under a name that is not taken, or under this one."""
  found = (beside(variables, kernel, text) for text in ("bias", "{}_bias", "{}_folded_bias"))
  return next(
    (path for path in found if path is not None and leaf_name(path) not in taken and name in (None, leaf_name(path))),
    None,
  )
