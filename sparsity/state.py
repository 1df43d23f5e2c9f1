"""The optimizer state of every sparse method, and what can be read from it.

A masks tree has the structure of the parameters, with a mask where a leaf is pruned and None where it is not.
"""

import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from leanax.core import ranges
from leanax.core.errors import UserError
from leanax.core.trees import path_name
from sparsity.packed import is_packed, unpack


class SparsityState(NamedTuple):
  """The state of a sparse optimizer.

  Attributes:
    masks: the masks tree (of `Packed`).
    done: how many of the schedule's mask updates were made (int32).
    updates: the optimizer updates so far (int32), for callers that do not pass `step=`.
    inner: the inner optimizer's state.
    memory: what the criteria remember, of the parameters' structure; () where they remember nothing.
  """

  masks: Any
  done: jax.Array
  updates: jax.Array
  inner: Any
  memory: Any = ()


class Leaf(NamedTuple):
  """Counts of one parameter leaf: entries, entries that its mask keeps, entries that are not zero."""

  size: int
  kept: int
  nonzero: int


def pure(tree: Any) -> Any:
  """Returns `tree` with arrays in place of the flax nnx variables that hold them, the leaves in the same order.

  `nnx.Optimizer` initialises with variables and updates with arrays, so a masks tree has none.
  """
  nnx = sys.modules.get("flax.nnx")  # where nobody has imported it there are no such variables
  return tree if nnx is None else nnx.as_pure(tree)


def find(opt_state: Any) -> list[SparsityState]:
  """Returns the sparsity states in any optimizer state, outermost first; none inside of another."""

  def is_state(x: Any) -> bool:
    return isinstance(x, SparsityState)

  return [leaf for leaf in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(leaf)]


def masks(opt_state: Any) -> Any:
  """Returns the tree of masks (bool) in force, from anywhere in `opt_state`; None of an optimizer that is not sparse.

  Raises:
    UserError: several sparse methods stand side by side in one optimizer.
  """
  found = find(opt_state)
  if len(found) > 1:
    raise UserError(f"the optimizer holds {len(found)} sparse methods side by side; wrap it in one, with one rule each")
  return jax.tree.map(unpack, pure(found[0].masks), is_leaf=is_packed) if found else None


def pair(tree: Any, masks: Any) -> tuple[list[tuple[str, jax.Array, Any]], Any]:
  """Returns [(name, leaf, its mask or None)], and the tree's structure; names lack a leading "params/".

  `masks` None means no mask anywhere.

  Raises:
    UserError: a mask of a leaf that the tree does not have.
  """
  named, _ = jax.tree_util.tree_flatten_with_path(pure(tree))
  # By path: optax.masked and optax.partition leave out whole parts of the tree.
  found = dict(jax.tree_util.tree_leaves_with_path(pure(masks), is_leaf=is_packed))
  flat = [found.pop(path, None) for path, _ in named]
  if found:
    raise UserError(f"there is a mask of {path_name(next(iter(found)))!r}, which is no leaf of the tree that it is for")
  names = [path_name(path).removeprefix("params/") for path, _ in named]
  return [(name, leaf, mask) for name, (_, leaf), mask in zip(names, named, flat, strict=True)], jax.tree.structure(
    tree
  )


def apply_masks(masks: Any, tree: Any) -> Any:
  """Returns `tree` (of the parameters' structure: an average of them, say) with zeros where the masks prune.

  Args:
    masks: a masks tree, bool or packed, or None: then `tree` is returned.
    tree: of the same structure.
  """
  leaves, treedef = pair(tree, masks)
  return treedef.unflatten([keep(mask, leaf) for _, leaf, mask in leaves])


def keep(mask: Any, x: jax.Array) -> jax.Array:
  """Returns `x` where the mask (bool, packed or None) is True, else zero."""
  if mask is None:
    return x
  return jnp.where(unpack(mask) if is_packed(mask) else mask, x, jnp.zeros((), x.dtype))


def summary(params: Any, masks: Any) -> dict[str, Leaf]:
  """Returns counts by leaf name, in the tree's order; a leaf without a mask keeps all. Reads values: not under jit."""

  def counts(leaf: jax.Array, mask: Any) -> Leaf:
    mask = unpack(mask) if is_packed(mask) else mask
    kept = leaf.size if mask is None else int(jnp.sum(mask, dtype=jnp.int32))
    return Leaf(leaf.size, kept, int(jnp.sum(leaf != 0, dtype=jnp.int32)))

  return {name: counts(jnp.asarray(leaf), mask) for name, leaf, mask in pair(params, masks)[0]}


def check(tx: Any, params: Any, updates: int = 24) -> None:
  """Tests that `tx` leaves pruned parameters exactly zero; `params` are not changed.

  A sparse method emits -w for a pruned entry, so only MultiSteps, apply_if_finite and the like may enclose it and
  nothing may scale, add to or delay its updates. The check trains a copy of `params` on made-up gradients, with a step
  count far beyond every schedule, and looks at the entries that the masks prune.

  Args:
    tx: the outermost transformation, or optax.MultiSteps.
    params: as for `tx.init`.
    updates: how many calls to make; more than the micro-steps of one optimizer update.

  Raises:
    UserError: no sparse method in `tx`, no mask made within `updates` calls, or a pruned entry that is not zero.
  """
  ranges.check("sparsity.check: updates", updates, ranges.whole(1))
  state = tx.init(params)
  if not find(state):
    raise UserError("the optimizer holds no sparse method; wrap it, as in sparsity.magnitude(optax.adamw(1e-3), ...)")
  plain = isinstance(tx, optax.GradientTransformation) and not isinstance(tx, optax.GradientTransformationExtraArgs)
  extra = {} if plain else {"step": jnp.asarray(2**31 - 1, jnp.int32)}
  update, made = jax.jit(lambda gradients, state, params: tx.update(gradients, state, params, **extra)), False
  for i in range(updates):
    gradients = jax.tree.map(lambda p, i=i: jnp.cos(jnp.arange(p.size) + i).reshape(p.shape).astype(p.dtype), params)
    delta, state = update(gradients, state, params)
    params = optax.apply_updates(params, delta)
    made = made or any(bool(jnp.all(s.done > 0)) for s in find(state))
    for name, leaf, mask in pair(params, masks(state))[0]:
      if mask is not None and not bool(jnp.all(jnp.where(mask, 0, leaf) == 0)):
        raise UserError(
          f"pruned entries of {name!r} are not zero after the update: something follows the sparse method; put "
          "clipping and scaling inside it, as in sparsity.magnitude(optax.chain(clip, adam), ...)"
        )
  if not made:
    raise UserError(
      f"no mask was made within {updates} calls; give check(updates=) more than the micro-steps of MultiSteps, or than "
      "the schedule's first update where step= cannot be passed"
    )
