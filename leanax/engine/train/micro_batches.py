"""The micro-batches of an update, and their images where an example does not count."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd.counting import fitted, valid_mask
from leanax.core.errors import UserError

Batch = Mapping[str, Any]
MicroBatch = Callable[[Array | int], Batch]


def micro_batches(batch: Batch | MicroBatch, first: Array | int, count: int) -> MicroBatch:
  """Returns `k -> batch`, the k-th micro-batch of an update.

  Args:
    batch: the arrays of the whole update, of which each micro-batch is a piece of consecutive examples; or a function
      that makes a micro-batch from its number, so that only one is in memory at a time.
    first: the number of the update's first micro-batch, counted from the beginning of the training.
    count: micro-batches per update.

  Raises:
    UserError: the batch is no mapping with an "image", or its examples do not divide into micro-batches.
  """
  if callable(batch):
    return lambda k: checked(batch(first + k))
  whole = checked(batch)
  if count == 1:
    return lambda k: whole
  size = jax.tree.leaves(whole["image"])[0].shape[0]
  if size % count:
    raise UserError(f"a batch of {size} examples does not divide into {count} micro-batches of equal size")
  mask = whole.get("class_mask")
  shared = {} if mask is None or (mask.ndim > 1 and mask.shape[0] == size) else {"class_mask": mask}
  pieces = {key: jax.tree.map(_pieces(key, size, count), x) for key, x in whole.items() if key not in shared}
  return lambda k: {**jax.tree.map(lambda a: a[k], pieces), **shared}


def _pieces(key: str, size: int, count: int) -> Callable[[Array], Array]:
  def split(x: Array) -> Array:
    if jnp.shape(x)[:1] != (size,):
      raise UserError(f"the batch's {key!r} is of shape {jnp.shape(x)}, and its 'image' has {size} examples")
    return x.reshape(count, size // count, *x.shape[1:])

  return split


def checked(batch: Any) -> Batch:
  """Returns the batch; raises a UserError where it is no mapping with an "image"."""
  if not isinstance(batch, Mapping):
    raise UserError(f"the batch is a {type(batch).__name__}; expected {{'image': images, 'label': labels}}, or more")
  if "image" not in batch:
    raise UserError(
      f"a batch holds {', '.join(map(repr, batch)) or 'nothing'}; expected 'image', the input of the model"
    )
  return batch


def filled(batch: Batch) -> Batch:
  """Returns the batch with zeros for what is not finite in the images of padding: NaN would reach every gradient."""
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
