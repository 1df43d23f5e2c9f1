"""Selects the parameters that a sparse method prunes, and finds those that hold several layers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from leanax.core import rules as path_rules
from leanax.core import trees
from leanax.core.errors import UserError

Setting = bool | float
Axes = int | Sequence[int]
Stacked = str | Sequence[str | tuple[str, Axes]] | Mapping[str, Axes]
KERNELS: tuple[tuple[str, Setting], ...] = (("*kernel", True),)


class Chosen(NamedTuple):
  """A leaf that is pruned: its name, itself, its rule's setting, and the axes along which it holds layers."""

  name: str
  leaf: Any
  setting: Setting
  axes: tuple[int, ...] = ()

  @property
  def layers(self) -> int:
    """The number of layers that the leaf holds."""
    return math.prod(self.leaf.shape[axis] for axis in self.axes)

  @property
  def layer_shape(self) -> tuple[int, ...]:
    """The shape of one of them."""
    return tuple(n for axis, n in enumerate(self.leaf.shape) if axis not in self.axes)

  @property
  def layer_names(self) -> list[str]:
    """A name for each of them."""
    return [f"{self.name}[{i}]" for i in range(self.layers)] if self.axes else [self.name]

  def apart(self, x: jax.Array) -> jax.Array:
    """Returns (layers, *layer_shape) of an array of the leaf's shape."""
    return jnp.moveaxis(x, self.axes, range(len(self.axes))).reshape(self.layers, *self.layer_shape)

  def whole(self, rows: jax.Array) -> jax.Array:
    """Returns what `apart` took apart, in the leaf's shape again."""
    first = [self.leaf.shape[axis] for axis in self.axes]
    return jnp.moveaxis(rows.reshape(*first, *self.layer_shape), range(len(self.axes)), self.axes)


def select(params: Any, rules: Sequence[tuple[str, Setting]], stacked: Stacked = ()) -> dict[int, Chosen]:
  """Returns the leaves that rules choose, by their index in the tree's leaves; those set to False are left out.

  In a tree of groups, {"params": ..., "qparams": ..., "aux": ...}, only `params` is pruned, whatever the others' leaves
  are called; names lack the leading "params/".

  Raises:
    UserError: a rule that matches nothing or never applies, or a chosen leaf without entries or without axes.
  """
  names = list(trees.named_leaves(params))
  prefix = "params/" if any(name.startswith("params/") for name in names) else ""
  leaves = {
    name.removeprefix(prefix): (i, leaf)
    for i, (name, leaf) in enumerate(zip(names, jax.tree.leaves(params), strict=True))
    if name.startswith(prefix)
  }
  given = stacked.items() if isinstance(stacked, Mapping) else [stacked] if isinstance(stacked, str) else stacked
  if not isinstance(given, Iterable):
    raise UserError(f"stacked= is {stacked!r}; expected (glob, axis or axes) pairs")
  pairs = [(one, 0) if isinstance(one, str) else one for one in given]
  layered = path_rules.match(pairs, leaves, "the rule of stacked=")
  chosen = {}
  for name, found in path_rules.match(rules, leaves, "sparsity rule").items():
    index, leaf = leaves[name]
    if found.setting is False:
      continue
    if not leaf.ndim:
      raise UserError(f"sparsity rule {found.glob!r} matches {name!r}, a scalar, which has nothing to prune")
    axes = _axes(name, leaf, layered[name]) if name in layered else ()
    chosen[index] = Chosen(name, leaf, found.setting, axes)
  return chosen


def _axes(name: str, leaf: Any, found: path_rules.Match) -> tuple[int, ...]:
  given = tuple(found.setting) if isinstance(found.setting, Sequence) else (found.setting,)
  if not all(isinstance(axis, int) and -leaf.ndim <= axis < leaf.ndim for axis in given):
    raise UserError(
      f"stacked= gives {found.glob!r} the axis {found.setting!r}, but {name!r} has the shape {leaf.shape}; expected "
      f"axes from 0 to {leaf.ndim - 1}"
    )
  axes = tuple(sorted({axis % leaf.ndim for axis in given}))
  if len(axes) == leaf.ndim:
    raise UserError(f"stacked= names every axis of {name!r}; expected one at least to be left in each layer")
  return axes
