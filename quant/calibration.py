"""Calibration: entries of the quantizers' state batch by batch, and errors for tensors without a range.

A scale is NaN until its tensor is observed, and from the first batch that holds NaN or infinity; the scale of a kernel
that holds them is infinite. So an operation in a branch that never ran has no grid. Inside jit nothing can be refused,
and such a grid gives NaN; `refuse` names it where numbers are concrete.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core.errors import UserError
from quant.observers import Observer
from quant.observers.base import BATCHES
from quant.plan import Plan

State = dict[str, Any]
_ONCE = "fresh"  # while a batch is observed: whether this tensor was, where several branches read it


def unseen(plan: Plan, observe: Callable[[], State]) -> State:
  """Returns the state before the first batch, from a function that returns any state of the same shapes."""

  def start(path: Any, like: Any) -> jax.Array:
    scale = path[-1] == jax.tree_util.DictKey("scale")
    return jnp.full(like.shape, jnp.nan if scale else 0, like.dtype)

  state = jax.tree_util.tree_map_with_path(start, after_batch(jax.eval_shape(observe)))
  return {name: forgotten(plan, name, entry) for name, entry in state.items()}


def forgotten(plan: Plan, name: str, entry: State) -> State:
  """Returns the entry without its statistics, so that the next batch is the first."""
  if "stats" not in entry:
    return entry
  start = plan.quantizers[name].spec.make_observer().init()
  return {**entry, "stats": jax.tree.map(lambda new, old: jnp.broadcast_to(new, old.shape), start, entry["stats"])}


def before_batch(plan: Plan, state: State) -> State:
  """Returns the state before a batch, with a flag for tensors that several branches read."""
  branched = {name for name, places in plan.observed.items() if len(places) > 1 and name not in plan.parts}
  several = {name for name in branched if "stats" in state.get(name, ())}
  fresh = {name: jnp.zeros(jnp.shape(state[name]["stats"][BATCHES].count), bool) for name in several}
  return {name: {**entry, _ONCE: fresh[name]} if name in fresh else entry for name, entry in state.items()}


def after_batch(state: State) -> State:
  """Returns the state after a batch, without these flags."""
  return {name: {key: value for key, value in entry.items() if key != _ONCE} for name, entry in state.items()}


def observed(observer: Observer, entry: State | None, x: jax.Array, axis_name: str | None) -> State:
  """Returns the entry's statistics after one more batch, which counts once however many branches read the tensor."""
  if entry is None:
    return {"stats": observer.update(observer.init(), x, axis_name)}
  found = observer.update(entry["stats"], x, axis_name)
  if _ONCE not in entry:
    return {"stats": found}
  found = jax.tree.map(lambda old, new: jnp.where(entry[_ONCE], old, new), entry["stats"], found)
  return {"stats": found, _ONCE: jnp.ones_like(entry[_ONCE])}


def refuse(state: State, every: bool = True) -> None:
  """Refuses NaN and infinity, and where `every` tensors that were never observed; does nothing inside jit.

  Raises:
    UserError: it names the kernel, or the tensors and the batch that held NaN or infinity.
  """
  if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(state)):
    return
  seen = {name: np.asarray(entry["seen"]["scale"]) for name, entry in state.items()}
  for name, scale in seen.items():
    if np.any(np.isinf(scale)):
      raise UserError(f"the kernel {name!r} holds NaN or infinity; a grid needs finite numbers")
  batches = {name: _bad_batch(entry) for name, entry in state.items() if "stats" in entry}
  first = min(filter(None, batches.values()), default=0)
  if first:
    names = sorted((n for n, batch in batches.items() if batch == first), key=lambda n: (not n.startswith("input"), n))
    more = f" and {len(names) - 3} others" if len(names) > 3 else ""
    raise UserError(
      f"batch {first} of the calibration holds NaN or infinity in {', '.join(map(repr, names[:3]))}{more}; "
      "a grid needs finite numbers"
    )
  for name, scale in seen.items():
    if every and np.any(np.isnan(scale)):
      raise UserError(_never(name))


def _bad_batch(entry: State) -> int:
  """Returns the first batch that held NaN or infinity, from 1; 0 if none did."""
  counts = np.asarray(entry["stats"][BATCHES].count)
  return int(np.min(-counts[counts < 0], initial=0 if np.all(counts >= 0) else 2**31 - 1))


def refuse_used(state: State) -> None:
  """Refuses grids in use of tensors that were never observed; does nothing inside jit."""
  for name, entry in state.items():
    scale = entry["used"]["scale"]
    if not isinstance(scale, jax.core.Tracer) and not np.all(np.isfinite(scale)):
      raise UserError(_never(name))


def _never(name: str) -> str:
  return (
    f"{name!r} was never seen by calibration: it stands in a branch that did not run; observe batches that take it, "
    "or give its sites the setting 'float'"
  )
