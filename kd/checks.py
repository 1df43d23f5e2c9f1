"""What losses check of masks: one of another shape or type is refused in one sentence, never broadcast.

The examples of a batch are counted by its first axes: (batch,) of logits (batch, classes), and (batch, *positions) of
logits (batch, *positions, classes), where every position is an example of its own.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from leanax.core.errors import UserError

Shape = tuple[int, ...]


def known(*arrays: Any) -> bool:
  """Whether the values are there, as they are outside jit."""
  return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arrays))


def spread(mask: Array, like: Shape) -> Array:
  """A mask over the first axes of a shape as one over all: (batch,) counts for every position."""
  return jnp.broadcast_to(mask.reshape(*mask.shape, *(1,) * (len(like) - mask.ndim)), like)


def batch_of(loss: str, batch: Any) -> Mapping[str, Any]:
  """A batch as it was given, and an empty one for None.

  Raises:
    UserError: it is something else, such as the labels alone.
  """
  if batch is None or isinstance(batch, Mapping):
    return batch or {}
  raise UserError(
    f"the loss {loss!r} expects a batch as its third argument, such as {{'label': labels}}; got {type(batch).__name__}"
  )


def valid_of(loss: str, batch: Mapping[str, Any], lead: Shape) -> Bool[Array, "*lead"] | None:
  """The examples that count, from `batch["valid"]`: bools (batch,) or (batch, *positions).

  Args:
    loss: how errors call the loss.
    batch: with "valid", or None there, where some examples do not count.
    lead: (batch, *positions).

  Returns:
    Bools of the shape `lead`; None where all count.

  Raises:
    UserError: they are no bools, or of another shape.
  """
  valid = batch.get("valid")
  if valid is None:
    return None
  valid = array(valid)
  if valid.dtype != bool or not valid.ndim or valid.shape != lead[: valid.ndim]:
    raise UserError(f"the loss {loss!r} expects batch['valid'] to be bools {lead[:1]}{also(lead)}; got {what(valid)}")
  return spread(jnp.asarray(valid), lead)


def class_mask_of(loss: str, class_mask: Any, shape: Shape) -> Bool[Array, "*#lead classes"] | None:
  """The classes that count: bools (classes,) or (batch, classes), for every position, or (batch, *positions, classes).

  Args:
    loss: how errors call the loss.
    class_mask: as given; axes but the last may have the length 1. None where all count.
    shape: of the logits.

  Returns:
    (classes,), or as many axes as the logits.

  Raises:
    UserError: they are no bools, or of another shape.
  """
  if class_mask is None:
    return None
  mask = array(class_mask)
  lead = mask.shape[:-1]
  fits = mask.shape[-1:] == shape[-1:] and mask.ndim <= len(shape)
  if mask.dtype != bool or not fits or any(a not in (1, b) for a, b in zip(lead, shape)):
    shapes = f"{shape[-1:]} or {(shape[0], shape[-1])}{also(shape[1:], shape)}"
    raise UserError(f"the loss {loss!r} expects class_mask to be bools {shapes}; got {what(mask)}")
  mask = jnp.asarray(mask)
  return mask if mask.ndim == 1 else mask.reshape(*lead, *(1,) * (len(shape) - mask.ndim), shape[-1])


def nan_where(wrong: Array | None, numbers: Array) -> Array:
  """The numbers, NaN where something is wrong, and their gradient too; the bits of the others are what they were."""
  return numbers if wrong is None else numbers * jnp.where(wrong, jnp.nan, jnp.ones((), numbers.dtype))


def counted(wrong: Array, valid: Array | None) -> Array:
  """Which of what is wrong counts."""
  return wrong if valid is None else wrong & valid


def countable(labels: Any) -> Any:
  """Labels that compare with numbers: bools as 0 and 1, which a strict promotion of dtypes would not compare."""
  return labels.astype(np.int8) if labels.dtype == bool else labels


def is_number(labels: Any, number: int) -> Any:
  """Where labels are a number; nowhere where their dtype has no such number: as one of uint8, -1 would be 255."""
  labels = countable(labels)
  if jnp.issubdtype(labels.dtype, jnp.integer):
    span = jnp.iinfo(labels.dtype)
    if not span.min <= number <= span.max:
      return np.zeros(labels.shape, bool)
  return labels == number


def array(x: Any) -> Any:
  """What has a shape and a dtype: values that are known as numpy's, so that nothing wraps on the way.

  Of what makes no array, such as lists of several lengths, it is one of the dtype object, which every check refuses.
  """
  try:
    return np.asarray(x) if known(x) else jnp.asarray(x)
  except (TypeError, ValueError):
    shell = np.empty((), object)
    shell[()] = x
    return shell


def what(x: Any) -> str:
  """How a sentence says what was given."""
  return f"{x.dtype} {x.shape}"


def also(several: Shape, shape: Shape | None = None) -> str:
  """How a sentence says another shape, where `several` has more than one axis."""
  return f" or {shape or several}" if len(several) > 1 else ""


def some(values: Any, wrong: Any) -> str:
  """How a sentence says which values are wrong."""
  bad = np.asarray(values)[np.asarray(wrong)]
  return f"{', '.join(map(str, bad[:3]))}{', ...' if len(bad) > 3 else ''} in {len(bad)} of {np.size(wrong)} places"
