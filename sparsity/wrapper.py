"""The base of every sparse method: an optimizer wrapped so that pruned parameters are exactly zero after each update.

    tx = sparsity.magnitude(optax.adamw(1e-3), density=0.1)
    updates, state = tx.update(gradients, state, params, step=step)
    params = optax.apply_updates(params, updates)

The wrapper sees the raw gradients, already averaged over devices, owns the inner optimizer's state and emits the final
update, which is -w for a pruned entry: w + (-w) is exactly zero whatever the inner optimizer did. So nothing may follow
it; clipping, weight decay and partitions go inside. Only wrappers that pass its update on or hold it back whole
(MultiSteps, apply_if_finite) may enclose it; `sparsity.check` tests that.

To the inner optimizer a pruned entry is a parameter that is zero, with zero gradient and zero slots (see slots.py).
Further arguments are passed on as they are, but for `task=`, which is a gradient too.
What it then writes into the slots is zero as well, but for optimizers that add something (noise, an epsilon).

`step` counts optimizer updates so far, never micro-batches; without it (`nnx.Optimizer`, flax's TrainState) the state
counts its own. MultiSteps calls what it wraps on every micro-step and
throws all but one result away. A mask update that is thrown away, or that apply_if_finite refuses, is made at the next
call, because the state says which of the schedule's updates have been made.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from leanax.core.errors import UserError
from sparsity.criteria import Score
from sparsity.packed import is_packed, unpack
from sparsity.slots import map_slots
from sparsity.state import SparsityState, keep, pure

Renew = Callable[[Any, Any, Any, Any, jax.Array, jax.Array, Any], Any]


def wrap(
  inner: optax.GradientTransformation,
  start: Callable[[Any], Any],
  due: Callable[[jax.Array], jax.Array] | None = None,
  renew: Renew | None = None,
  score: Score | None = None,
  regrows: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Returns the sparse optimizer from its masks.

  Args:
    inner: any optax optimizer.
    start: `start(params)`, the masks tree (of `Packed` and None) to begin with.
    due: `due(step)`, how many mask updates the schedule has made by then (int32). None: the masks never change.
    renew: `renew(params, gradients, masks, memory, step, due, seed)`, new masks of the same structure; runs only when
      one is due. `seed` is the one that `update` was given, or None.
    score: the criterion whose memory is kept.
    regrows: whether masks gain entries, which then start from zero, with zero slots.
  """
  if not (hasattr(inner, "init") and hasattr(inner, "update")):
    raise UserError(f"the inner optimizer is {inner!r}; expected one of optax, such as optax.adam(1e-3)")
  inner = optax.with_extra_args_support(inner)

  # The names of optax's protocol: what comes in as `updates` are gradients.
  def init(params: Any) -> SparsityState:
    # Without a schedule the masks of the start are all that will ever be made.
    done = jnp.asarray(due is None, jnp.int32)
    masks = start(pure(params))
    memory = _first_memory(score, pure(params), masks)
    return SparsityState(masks, done, jnp.zeros((), jnp.int32), inner.init(params), memory)

  def update(
    updates: Any, state: Any, params: Any = None, *, step: Any = None, **extra: Any
  ) -> tuple[Any, SparsityState]:
    if params is None:
      raise UserError("a sparse optimizer needs the parameters: tx.update(gradients, state, params, step=step)")
    masks, done = state.masks, state.done
    memory = _next_memory(score, state.memory, pure(params), pure(updates), masks)
    step = state.updates if step is None else _count(step)
    if due is not None and renew is not None:
      wanted = due(step)
      masks = jax.lax.cond(
        _anywhere(wanted > done),
        lambda: _choose(
          wanted > done, renew(pure(params), pure(updates), masks, memory, step, wanted, extra.get("seed")), masks
        ),
        lambda: masks,
      )
      done = jnp.maximum(done, wanted)
    before = state.masks if regrows else masks
    updates, slots = _masked_update(inner, updates, state.inner, params, (before, masks), {"step": step, **extra})
    return updates, SparsityState(masks, done, step + 1, slots, memory)

  return optax.GradientTransformationExtraArgs(init, update)


def _masked_update(
  inner: optax.GradientTransformationExtraArgs,
  gradients: Any,
  slots: Any,
  params: Any,
  masks: tuple[Any, Any],
  extra: dict[str, Any],
) -> tuple[Any, Any]:
  """Returns the final update and the new slots; `masks` are those before and after this step's mask update."""
  leaves, treedef = jax.tree.flatten(params)
  flat = _unpacked(params, masks[1])
  # Kept from before: entries that a mask gains start from zero.
  past = flat if masks[0] is masks[1] else list(map(_both, _unpacked(params, masks[0]), flat))

  def masked(tree: Any) -> Any:
    return treedef.unflatten(map(keep, flat, treedef.flatten_up_to(tree)))

  def final(mask: Any, stays: Any, update: jax.Array, w: jax.Array) -> jax.Array:
    if mask is None:
      return update
    dtype = update.dtype if update.dtype.itemsize > w.dtype.itemsize else w.dtype  # -w is exact in the wider one
    update, w = update.astype(dtype), w.astype(dtype)
    kept = update if stays is mask else jnp.where(stays, update, update - w)
    return jnp.where(mask, kept, -w)

  # Before the inner update: after it, the old slots would have to be copied, for 3 % of an MLP's step.
  slots = map_slots(lambda i, slot: keep(past[i], slot), params, slots)
  if extra.get("task") is not None:  # a part of the gradients, for an optimizer that tells it from the rest
    extra = {**extra, "task": masked(extra["task"])}
  updates, slots = inner.update(masked(gradients), slots, treedef.unflatten(map(keep, past, leaves)), **extra)
  return treedef.unflatten(map(final, flat, past, treedef.flatten_up_to(updates), leaves)), slots


def _unpacked(params: Any, masks: Any) -> list[Any]:
  flat = jax.tree.structure(pure(params)).flatten_up_to(masks)
  return [unpack(mask) if is_packed(mask) else None for mask in flat]


def _both(a: Any, b: Any) -> Any:
  return None if a is None else a & b


def _first_memory(score: Score | None, params: Any, masks: Any) -> Any:
  if score is None or score.update is None:
    return ()
  return jax.tree.map(lambda mask, w: None if mask is None else score.init(w), masks, params, is_leaf=_is_mask)


def _next_memory(score: Score | None, memory: Any, params: Any, gradients: Any, masks: Any) -> Any:
  if score is None or score.update is None:
    return memory
  leaves, treedef = jax.tree.flatten(params)
  flat = zip(*(treedef.flatten_up_to(tree) for tree in (masks, memory, gradients)), leaves, strict=True)
  return treedef.unflatten([m if mask is None else score.update(m, w, g) for mask, m, g, w in flat])


def _is_mask(x: Any) -> bool:
  return x is None or is_packed(x)


def _count(step: Any) -> jax.Array:
  if isinstance(step, str) or not jnp.issubdtype(jnp.result_type(step), jnp.integer) or jnp.ndim(step):
    raise UserError(f"step= is {step!r}; expected the number of optimizer updates so far, a scalar of an integer type")
  return jnp.asarray(step, jnp.int32)


def _choose(flag: jax.Array, new: Any, old: Any) -> Any:
  return jax.tree.map(lambda a, b: jnp.where(flag, a, b), new, old)


@jax.custom_batching.custom_vmap
def _anywhere(flag: jax.Array) -> jax.Array:
  """Returns `flag`, under vmap whether any of the batch has it: with a batched predicate, cond runs both branches."""
  return flag


@_anywhere.def_vmap
def _anywhere_batched(size: int, batched: list[bool], flag: jax.Array) -> tuple[jax.Array, bool]:
  del size
  return (_anywhere(jnp.any(flag, axis=0)) if batched[0] else flag), False
