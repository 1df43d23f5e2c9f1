"""Batch norms folded into the dot or convolution before them.

They are found by what they do: a site's output goes, through equations that are affine in it, to the last one whose
coefficients depend on the variables alone. The slope and the offset of that chain are its derivative and its value at
zero, so how the normalisation is spelled does not matter; that they are the same at every position is checked on the
numbers. The site then has the kernel times the slope, and the offset as its bias.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from core.errors import UserError
from graph import versions
from graph.affine import AFFINE, Chain, Users, find_chain, foldable, measure, out_axis
from graph.emit import Replacement
from graph.program import read
from graph.shapes import build, leaves_by_name, name_of, shapes
from graph.sites import Analysis


def fold_batch_norms(
  fn: Callable[..., Any], variables: Any, *inputs: Any
) -> tuple[Callable[..., Any], dict[Any, Any], list[dict[str, Any]]]:
  """Folds every batch norm that follows a dot or a convolution into it.

  A site is left as it is when its kernel is used twice or computed from others, when its output has another reader, or
  inside a scan.

  Args:
    fn: `fn(variables, *inputs) -> out` in evaluation mode.
    variables: nested dicts and lists of arrays.
    *inputs: an example; a batch of one is enough.

  Returns:
    `(fn2, variables2, edits)`: `fn2(variables2, *inputs)` returns what `fn(variables, *inputs)` does, to rounding. The
    kernels in variables2 are scaled, biases new (`<module>/bias`) or replaced, the batch norms' leaves gone.
    `edit(fn, edits, shapes(variables))` is fn2 again.
  """
  from graph.edit import edit, needed

  analysis = Analysis(read(fn, variables, *inputs))
  users, given = Users(analysis), leaves_by_name(variables)
  chains = [chain for site in analysis.sites if (chain := foldable(users, site)) is not None]
  if not chains:
    return fn, variables, []
  original = shapes(variables)
  paths = {name_of(path): path for path, _, _ in original}
  measured = measure(analysis, chains, given)
  edits: list[dict[str, Any]] = []
  changed = dict(given)
  for chain, (offset, kernel, flat) in zip(chains, measured, strict=True):
    if not flat or isinstance(paths[_kernel(chain)][-1], dict):  # a list has no place for a bias of its own
      continue
    leaf = _kernel(chain)
    bias = _bias_name(analysis, users, chain, leaf, changed)
    paths.setdefault(bias, [*paths[leaf][:-1], *bias.split("/")[-1:]])
    changed[leaf] = (given[leaf] * kernel).astype(given[leaf].dtype)
    changed[bias] = offset.astype(given[leaf].dtype)
    names = [node.primitive for node in chain.nodes]
    edits.append({"edit": "fold_batch_norm", "site": chain.site.op.name, "bias": bias, "chain": names})
  replaced: dict[int, Replacement] = {}
  for one in edits:
    replaced.update(replacement(users, one, changed))
  _, values = needed(analysis, replaced)
  read_before = needed(analysis, {})[1]
  for name, number in zip(analysis.program.leaves, analysis.program.body.inputs, strict=False):
    if number in read_before and number not in values and name not in (e["bias"] for e in edits):
      del changed[name]
  result = build((paths[name], value) for name, value in changed.items())
  return edit(fn, edits, original), result, edits


def _kernel(chain: Chain) -> str:
  leaf = chain.site.op.inputs[chain.site.op.kernel_index or 0].leaf
  assert leaf is not None
  return leaf


def _bias_name(analysis: Analysis, users: Users, chain: Chain, kernel: str, taken: Mapping[str, Any]) -> str:
  """The chain's own bias if nothing else reads it, else a new name beside the kernel."""
  for node in chain.nodes:
    known = analysis.at.get(node.index)
    if known is not None and known.op.kind == "bias":
      leaf = next(o.leaf for o in known.op.inputs if o.leaf is not None)
      number = analysis.program.body.inputs[analysis.program.leaves.index(leaf)]
      one_axis = math.prod(analysis.program.avals[number].shape) == max(analysis.program.avals[number].shape, default=0)
      if len(users.readers[number]) == 1 and one_axis:
        return leaf
  module, _, last = kernel.rpartition("/")
  candidates = (f"{module}/bias" if module else "bias", f"{kernel}_bias", f"{module}/{last}_folded_bias")
  return next(name for name in candidates if name not in taken)


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
  axis, bias = out_axis(site), given[one["bias"]]

  def call(y: Any) -> tuple[Any, ...]:
    y = y + jnp.expand_dims(bias.astype(y.dtype), [i for i in range(y.ndim) if i != axis])
    for node in chain.nodes:
      if node.primitive not in AFFINE:
        y = versions.rebind(node.eqn, (y,))[0]
    return (y,)

  return {chain.nodes[-1].index: Replacement(site.node.outputs[:1], call)}
