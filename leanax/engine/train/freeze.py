"""Leaves that a training leaves as they are, chosen by rule: their gradients are zero, and each step puts them back.

Zero gradients keep them out of the clipped norm and of the optimizer's momenta; putting them back undoes whatever else
moves a leaf, such as weight decay or a running average. A pattern names leaves of the model's variables, parameters and
other collections alike: "BatchNorm_*" keeps a norm's scale and its running statistics, "BatchNorm_*/scale" the scale
alone. In training mode a norm divides by the statistics of the batch, frozen or not. The trained scale of a quantizer
stays with the kernel that it belongs to, so that the codes of a frozen kernel stay too; those of activations train.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from leanax.core import rules
from leanax.core.errors import UserError
from leanax.core.trees import map_named, named_leaves


def frozen(patterns: Sequence[str], variables: Mapping[str, Any]) -> frozenset[str]:
  """Returns the names of the leaves that stay, without that of their collection: "Conv_0/kernel".

  Args:
    patterns: globs of such names; `*` crosses `/`.
    variables: {"params": tree, other collections}, of a quantized net with its grids; shapes are enough.

  Raises:
    UserError: a pattern matches nothing, or nothing is left to train.
  """
  if not patterns:
    return frozenset()
  params, scales = _names(variables["params"]), _names(variables.get("qparams", {}))
  others = [name for key, tree in variables.items() if key not in ("qparams", "quant_state") for name in _names(tree)]
  found = frozenset(rules.match([(pattern, True) for pattern in patterns], dict.fromkeys(others), "freeze rule"))
  if found >= {*params, *scales}:
    raise UserError(f"freeze rules {tuple(patterns)!r} hold every parameter; expected one that is left to train")
  return found


def _names(tree: Any) -> list[str]:
  return list(named_leaves(tree))


def kept(names: Collection[str], before: Any, after: Any) -> Any:
  """Returns the tree `after` with the leaves of these names as they are in `before`."""
  if not names:
    return after
  return map_named(lambda name, new, old: old if name in names else new, after, before)


def without(names: Collection[str], grads: Mapping[str, Any]) -> dict[str, Any]:
  """Returns gradients of {"params", "qparams", ...} with zeros for the leaves of these names."""

  def zeroed(tree: Any) -> Any:
    return map_named(lambda name, grad: jnp.zeros_like(grad) if name in names else grad, tree)

  return {**grads, **{key: zeroed(grads[key]) for key in ("params", "qparams")}} if names else dict(grads)


def held(names: Collection[str], before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
  """Returns trees by their collections, `after`, with the leaves of these names as in `before`.

  Args:
    names: of `frozen`.
    before: {"params", "qparams", "model_state", ...} before the step.
    after: some of the same after it; of "model_state" each collection is a tree of its own.
  """
  if not names:
    return dict(after)
  trees = {key: kept(names, before[key], after[key]) for key in ("params", "qparams") if key in after}
  if "model_state" in after:
    given = after["model_state"].items()
    trees["model_state"] = {key: kept(names, before["model_state"][key], tree) for key, tree in given}
  return {**after, **trees}
