"""Leaves that a training leaves as they are, chosen by rule: their gradients are zero, and each step puts them back.

Zero gradients keep them out of the clipped norm and of the optimizer's momenta; putting them back undoes whatever else
moves a leaf, such as weight decay or a running average. A pattern names leaves of the model's variables, parameters and
other collections alike: "BatchNorm_*" keeps a norm's scale and its running statistics, "BatchNorm_*/scale" the scale
alone. In training mode a norm divides by the statistics of the batch, frozen or not. The trained scale of a quantizer
stays with the kernel that it belongs to, so that the codes of a frozen kernel stay too; those of activations train.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from leanax.core import rules
from leanax.core.errors import UserError
from leanax.core.trees import map_named, named_leaves
from leanax.engine.train.state import TrainState

Hold = Callable[[Mapping[str, Any]], dict[str, Any]]


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


def still(patterns: Sequence[str], state: TrainState) -> tuple[Hold, Hold]:
  """Returns what keeps the frozen leaves of a state as they are: two functions of trees by their collections.

  The first makes gradients of {"params", "qparams", ...} zero there; the second puts the leaves of the state back into
  {"params", "qparams", "model_state", ...}, after an update or of its averages, which begin as these leaves.
  """
  names = frozen(patterns, {**state.variables, "qparams": state.qparams})

  def without(grads: Mapping[str, Any]) -> dict[str, Any]:
    zeros = {key: map_named(lambda _, grad: jnp.zeros_like(grad), grads[key]) for key in ("params", "qparams")}
    return {**grads, **{key: _kept(names, zeros[key], grads[key]) for key in zeros}} if names else dict(grads)

  def held(after: Mapping[str, Any]) -> dict[str, Any]:
    if not names:
      return dict(after)
    trees = {key: _kept(names, getattr(state, key), after[key]) for key in ("params", "qparams")}
    stats = {key: _kept(names, state.model_state[key], tree) for key, tree in after["model_state"].items()}
    return {**after, **trees, "model_state": stats}

  return without, held


def _kept(names: Collection[str], before: Any, after: Any) -> Any:
  """Returns the tree `after` with the leaves of these names as they are in `before`."""
  return map_named(lambda name, new, old: old if name in names else new, after, before)
