"""Updates of several micro-batches, and the images of what does not count; `kd.counting` takes the means."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd.counting import UPDATE, fitted, valid_mask, whole
from leanax.core.errors import UserError

_KEPT = ("label", "mix_label", "valid", "class_mask")


def refuse_unknown_counts(batch: Mapping[str, Any], masks: Sequence[Array | None], accumulate: int) -> None:
  """Raises a UserError where micro-batches are masked, and how much counts in all of them is not known, or of others.

  Args:
    batch: of a step.
    masks: what counts for each of its terms.
    accumulate: micro-batches an update.
  """
  given = whole(batch).micro_batches
  if accumulate > 1 and given != accumulate and (given > 1 or any(mask is not None for mask in masks)):
    raise UserError(
      f"accumulate is {accumulate}, and some examples may not count: a mean over those that do needs the labels and "
      f"masks of {accumulate} micro-batches in the batch's 'update'; expected a get_batch that engine.of_update gives"
    )


def of_update(get_batch: Callable[..., dict[str, Any]], accumulate: int) -> Callable[..., dict[str, Any]]:
  """Gives each micro-batch the labels and masks of all of its update, by which the terms of an objective are weighed.

  Args:
    get_batch: as of `engine.fit`. It is called for the other micro-batches, too; the compiler drops all but the labels.
    accumulate: micro-batches an update, as of `make_train_step`.
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
  if "class_mask" in found and found["class_mask"].ndim < 2:
    del found["class_mask"]
  return found


def filled(batch: Mapping[str, Any]) -> Mapping[str, Any]:
  """The batch with zeros in place of what is not finite in the images of padding: NaN would reach every gradient."""
  if "image" not in batch:
    raise UserError(
      f"a batch holds {', '.join(map(repr, batch)) or 'nothing'}; expected 'image', the input of the model"
    )
  valid = valid_mask(batch)
  if valid is None:
    return batch
  rows = fitted(valid, valid.shape[:1])

  def fill(x: Array) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.inexact):
      return x
    return jnp.where(rows.reshape(rows.shape + (1,) * (x.ndim - 1)) | jnp.isfinite(x), x, jnp.zeros_like(x))

  return {**batch, "image": jax.tree.map(fill, batch["image"])}
