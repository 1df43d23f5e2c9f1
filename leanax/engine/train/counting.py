"""Updates of several micro-batches, and the images of what does not count; `kd.counting` takes the means."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd.counting import STACKED, UPDATE, fitted, valid_mask, whole
from leanax.core.errors import UserError

_KEPT = ("label", "mix_label", "valid", "class_mask")


def refuse_unknown_counts(batch: Mapping[str, Any], masks: Sequence[Array | None], accumulate: int) -> None:
  """Raises a UserError where micro-batches are masked, and how much counts in all of them is not known, or of others.

  A mean over the examples that count of other micro-batches would be another number.

  Args:
    batch: of a step.
    masks: what counts for each of its terms.
    accumulate: micro-batches an update.
  """
  update, given = whole(batch)
  if UPDATE in batch and update.keys() != _masks(batch).keys():
    found, own = (", ".join(map(repr, sorted(keys))) for keys in (update, _masks(batch)))
    raise UserError(f"the batch's 'update' has {found}, and the batch {own}; {STACKED}")
  if accumulate == 1 < given:
    raise UserError(f"accumulate is 1, and the batch's 'update' is of {given} micro-batches; expected as many")
  if given != accumulate and (given > 1 or any(mask is not None for mask in masks)):
    raise UserError(
      f"accumulate is {accumulate}, and some examples may not count: a mean over those that do needs the labels and "
      f"masks of {accumulate} micro-batches in the batch's 'update'; expected a get_batch that engine.of_update gives"
    )


def of_update(get_batch: Callable[..., dict[str, Any]], accumulate: int) -> Callable[..., dict[str, Any]]:
  """Gives each micro-batch the labels and masks of all of its update, by which the terms of an objective are weighed.

  Args:
    get_batch: as of `engine.fit`. It is called for the other micro-batches, too; the compiler drops all but the labels.
    accumulate: micro-batches an update, as of `engine.training`.
  """
  if accumulate == 1:
    return get_batch

  def get(data: Any, step: Any, *, seed: Any, part: Any) -> dict[str, Any]:
    batch = get_batch(data, step, seed=seed, part=part)
    if not _masks(batch):
      return batch
    first = step - step % accumulate
    others = jax.lax.map(
      lambda k: masks_of(get_batch(data, first + k, seed=seed, part=part)), jnp.arange(accumulate, dtype=jnp.int32)
    )
    return {**batch, UPDATE: jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), others)}

  return get


def masks_of(batch: Mapping[str, Any]) -> dict[str, Any]:
  """What of a batch says which of its examples count.

  In a loop of one's own: `batch["update"] = jax.tree.map(lambda *a: jnp.stack(a, 1), *map(masks_of, micro_batches))`.
  """
  found = _masks(batch)
  if not found:
    raise UserError("a batch without 'label' and 'valid' says nothing of which examples count; expected one of them")
  return found


def _masks(batch: Mapping[str, Any]) -> dict[str, Any]:
  found = {key: batch[key] for key in _KEPT if key in batch}
  if "class_mask" in found:
    mask = found.pop("class_mask")
    rows = next((a.shape[0] for a in found.values()), mask.shape[0])
    if mask.ndim > 1:  # one row may stand for all examples
      found["class_mask"] = jnp.broadcast_to(mask, (rows, *mask.shape[1:])) if mask.shape[0] == 1 else mask
  return found


def filled(batch: Mapping[str, Any]) -> Mapping[str, Any]:
  """The batch with zeros in place of what is not finite in the images of padding: NaN would reach every gradient."""
  if not isinstance(batch, Mapping):
    raise UserError(f"the batch is a {type(batch).__name__}; expected {{'image': images, 'label': labels}}, or more")
  if "image" not in batch:
    raise UserError(
      f"a batch holds {', '.join(map(repr, batch)) or 'nothing'}; expected 'image', the input of the model"
    )
  valid = valid_mask(batch)
  if valid is None:
    return batch
  rows = fitted(valid, valid.shape[:1])

  def fill(x: Array) -> Array:
    if x.shape[:1] != rows.shape:
      raise UserError(
        f"the batch's 'valid' has {len(rows)} examples, and its 'image' {x.shape[0] if x.ndim else 'none'}"
      )
    if not jnp.issubdtype(x.dtype, jnp.inexact):
      return x
    return jnp.where(rows.reshape(rows.shape + (1,) * (x.ndim - 1)) | jnp.isfinite(x), x, jnp.zeros_like(x))

  return {**batch, "image": jax.tree.map(fill, batch["image"])}
