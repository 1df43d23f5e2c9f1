"""Batch norms folded into the dot or convolution before them.

They are found by what they do: a site's output goes, through equations that are affine in it, to the last one whose
coefficients depend on the variables alone. The slope and the offset of that chain are its derivative and its value at
zero, so how the normalisation is spelled does not matter; that they are the same at every position is checked on the
numbers. The site then has the kernel times the slope, and the offset as its bias.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core.errors import UserError
from leanax.graph import versions
from leanax.graph.affine import AFFINE, Chain, Measured, Users, find_chain, measure, out_axes, refusal
from leanax.graph.emit import Replacement
from leanax.graph.program import leaf_name, read
from leanax.graph.shapes import GONE, beside, changed, leaves_by_name, structs
from leanax.graph.sites import Analysis


def fold_batch_norms(
  fn: Callable[..., Any], variables: Any, *inputs: Any
) -> tuple[Callable[..., Any], dict[Any, Any], list[dict[str, Any]]]:
  """Folds every batch norm that follows a dot or a convolution into it.

  A site is left as it is when its kernel is used twice or computed from others, when its output has another reader, or
  inside a scan; `batch_norms` says which and why.

  Args:
    fn: `fn(variables, *inputs) -> out` in evaluation mode.
    variables: a tree of arrays; what comes back has the same containers.
    *inputs: an example; a batch of one is enough.

  Returns:
    `(fn2, variables2, edits)`: `fn2(variables2, *inputs)` returns what `fn(variables, *inputs)` does, to rounding. The
    kernels in variables2 are scaled, biases new (`<module>/bias`) or replaced, the batch norms' leaves gone.
    `edit(fn, edits, variables)` is fn2 again.
  """
  from leanax.graph.edit import edit, needed

  analysis = Analysis(read(fn, variables, *inputs))
  users = Users(analysis)
  plan = folds(users, variables)
  found = [(fold, fold.chain.site.op) for fold in plan if not fold.reason]
  if not found:
    return fn, variables, []
  paths = {leaf_name(path): path for path, _ in jax.tree_util.tree_leaves_with_path(variables)}
  edits: list[dict[str, Any]] = []
  values = dict(leaves_by_name(variables))
  for fold, op in found:
    paths[fold.bias] = fold.path
    values |= {name: jnp.asarray(value) for name, value in fold.values.items()}
    names = [node.primitive for node in fold.chain.nodes]
    edits.append({"edit": "fold_batch_norm", "site": op.name, "bias": fold.bias, "chain": names})
  replaced: dict[int, Replacement] = {}
  for one in edits:
    replaced.update(replacement(users, one, values))
  read_after, read_before = needed(analysis, replaced)[1], needed(analysis, {})[1]
  biases = {fold.bias for fold, _ in found}
  for name, number in zip(analysis.program.leaves, analysis.program.body.inputs, strict=False):
    if number in read_before and number not in read_after and name not in biases:
      values[name] = GONE
  result = changed(variables, {paths[name]: value for name, value in values.items()})
  return edit(fn, edits, structs(variables)), result, edits


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
  """Every chain after a site that holds a product with variables, in order: how it is folded, or why it is not."""
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
    path = _own_bias(users, chain, paths, bias.shape) or _new_bias(variables, paths[name], taken)
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
  """The new kernel and bias, in the kernel's type."""
  return (np.asarray(kernel, np.float64) * one.factor).astype(kernel.dtype), one.offset.astype(kernel.dtype)


def _own_bias(users: Users, chain: Chain, paths: Mapping[str, Any], sizes: tuple[int, ...]) -> Any:
  """Where the bias of a chain's site is, if it has one that nothing else reads."""
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


def _new_bias(variables: Any, kernel: tuple[Any, ...], taken: Collection[str]) -> Any:
  """Where a new bias can be, beside the kernel."""
  found = (beside(variables, kernel, text) for text in ("bias", "{}_bias", "{}_folded_bias"))
  return next((path for path in found if path is not None and leaf_name(path) not in taken), None)


def replacement(users: Users, one: dict[str, Any], given: Mapping[str, Any]) -> dict[int, Replacement]:
  """The chain of a folded site becomes: its output, plus the bias, moved as the chain moved it."""
  site = users.sites.get(one["site"])
  chain = None if site is None else find_chain(users, site)
  if site is None or chain is None or [node.primitive for node in chain.nodes] != list(one["chain"]):
    raise UserError(
      f"the function has no batch norm after {one['site']!r} as it had when it was folded; the edits are for the "
      "function in evaluation mode that they were made from"
    )
  if one["bias"] not in given:
    raise UserError(f"the variables lack {one['bias']!r}, which folding a batch norm had made")
  axes, bias = out_axes(site), given[one["bias"]]

  def call(y: Any) -> tuple[Any, ...]:
    y = y + bias.astype(y.dtype).reshape([n if i in axes else 1 for i, n in enumerate(y.shape)])
    for node in chain.nodes:
      if node.primitive not in AFFINE:
        y = versions.rebind(node.eqn, (y,))[0]
    return (y,)

  return {chain.nodes[-1].index: Replacement(site.node.outputs[:1], call)}
