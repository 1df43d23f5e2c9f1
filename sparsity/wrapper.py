"""What every sparse method shares: an optimizer wrapped so that pruned parameters are exactly zero after each update.

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
from sparsity.packed import is_packed, unpack
from sparsity.slots import map_slots
from sparsity.state import SparsityState, keep, pure

Renew = Callable[[Any, Any, Any, jax.Array], Any]


def wrap(
  inner: optax.GradientTransformation,
  start: Callable[[Any], Any],
  due: Callable[[jax.Array], jax.Array] | None = None,
  renew: Renew | None = None,
) -> optax.GradientTransformationExtraArgs:
  """The sparse optimizer from its masks.

  Args:
    inner: any optax optimizer.
    start: `start(params)`, the masks tree (of `Packed` and None) to begin with.
    due: `due(step)`, how many mask updates the schedule has made by then (int32). None: the masks never change.
    renew: `renew(params, gradients, masks, due)`, new masks of the same structure; runs only when one is due.
  """
  if not (hasattr(inner, "init") and hasattr(inner, "update")):
    raise UserError(f"the inner optimizer is {inner!r}; expected one of optax, such as optax.adam(1e-3)")
  inner = optax.with_extra_args_support(inner)

  # The names of optax's protocol: what comes in as `updates` are gradients.
  def init(params: Any) -> SparsityState:
    # Without a schedule the masks of the start are all that will ever be made.
    done = jnp.asarray(due is None, jnp.int32)
    return SparsityState(start(pure(params)), done, jnp.zeros((), jnp.int32), inner.init(params))

  def update(
    updates: Any, state: Any, params: Any = None, *, step: Any = None, **extra: Any
  ) -> tuple[Any, SparsityState]:
    if params is None:
      raise UserError("a sparse optimizer needs the parameters: tx.update(gradients, state, params, step=step)")
    masks, done = state.masks, state.done
    step = state.updates if step is None else _count(step)
    if due is not None and renew is not None:
      wanted = due(step)
      masks = jax.lax.cond(
        _anywhere(wanted > done),
        lambda: _choose(wanted > done, renew(pure(params), updates, masks, wanted), masks),
        lambda: masks,
      )
      done = jnp.maximum(done, wanted)
    updates, slots = _masked_update(inner, updates, state.inner, params, masks, {"step": step, **extra})
    return updates, SparsityState(masks, done, step + 1, slots)

  return optax.GradientTransformationExtraArgs(init, update)


def _masked_update(
  inner: optax.GradientTransformationExtraArgs,
  gradients: Any,
  slots: Any,
  params: Any,
  masks: Any,
  extra: dict[str, Any],
) -> tuple[Any, Any]:
  leaves, treedef = jax.tree.flatten(params)
  flat = [unpack(mask) if is_packed(mask) else None for mask in jax.tree.structure(pure(params)).flatten_up_to(masks)]

  def masked(tree: Any) -> Any:
    return treedef.unflatten(map(keep, flat, treedef.flatten_up_to(tree)))

  def final(mask: Any, update: jax.Array, w: jax.Array) -> jax.Array:
    if mask is None:
      return update
    dtype = update.dtype if update.dtype.itemsize > w.dtype.itemsize else w.dtype  # -w is exact in the wider one
    return jnp.where(mask, update.astype(dtype), -w.astype(dtype))

  # Before the inner update: after it, the old slots would have to be copied, for 3 % of an MLP's step.
  slots = map_slots(lambda i, slot: keep(flat[i], slot), params, slots)
  if extra.get("task") is not None:  # a part of the gradients, for an optimizer that tells it from the rest
    extra = {**extra, "task": masked(extra["task"])}
  updates, slots = inner.update(masked(gradients), slots, masked(params), **extra)
  return treedef.unflatten(map(final, flat, treedef.flatten_up_to(updates), leaves)), slots


def _count(step: Any) -> jax.Array:
  if isinstance(step, str) or not jnp.issubdtype(jnp.result_type(step), jnp.integer) or jnp.ndim(step):
    raise UserError(f"step= is {step!r}; expected the number of optimizer updates so far, a scalar of an integer type")
  return jnp.asarray(step, jnp.int32)


def _choose(flag: jax.Array, new: Any, old: Any) -> Any:
  return jax.tree.map(lambda a, b: jnp.where(flag, a, b), new, old)


@jax.custom_batching.custom_vmap
def _anywhere(flag: jax.Array) -> jax.Array:
  """`flag`, but under vmap whether any of the batch has it: by a batched predicate cond would run both branches."""
  return flag


@_anywhere.def_vmap
def _anywhere_batched(size: int, batched: list[bool], flag: jax.Array) -> tuple[jax.Array, bool]:
  del size
  return (_anywhere(jnp.any(flag, axis=0)) if batched[0] else flag), False
