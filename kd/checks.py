"""Checks of masks: a mask of another shape or type is refused in one sentence, never broadcast.

The first axes of the logits give the examples: (batch,) for logits (batch, classes), and (batch, *positions) for logits
(batch, *positions, classes), where every position is an example.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from leanax.core.errors import UserError

Shape = tuple[int, ...]


def known(*arrays: Any) -> bool:
  """Returns whether all values are concrete, as they are outside jit."""
  return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arrays))


def spread(mask: Array, like: Shape) -> Array:
  """Broadcasts a mask over the first axes of a shape to all axes: (batch,) applies to every position."""
  return jnp.broadcast_to(mask.reshape(*mask.shape, *(1,) * (len(like) - mask.ndim)), like)


def arguments(where: str, f: Any, *args: Any, **kwargs: Any) -> None:
  """Refuses what is no function of these arguments.

  Raises:
    UserError: `where`, and the reason.
  """
  if not callable(f):
    raise UserError(f"{where}: got {f!r}, and no function")
  try:
    signature = inspect.signature(f)
  except ValueError:  # a function of C
    return
  try:
    signature.bind(*args, **kwargs)
  except TypeError as error:
    raise UserError(f"{where}: {error}") from error


def batch_of(loss: str, batch: Any) -> Mapping[str, Any]:
  """Returns the batch, or an empty one for None.

  Raises:
    UserError: the batch is not a mapping, such as the labels alone.
  """
  if batch is None or isinstance(batch, Mapping):
    return batch or {}
  raise UserError(
    f"the loss {loss!r} expects a batch as its third argument, such as {{'label': labels}}; got {type(batch).__name__}"
  )


def valid_of(loss: str, batch: Mapping[str, Any], lead: Shape) -> Bool[Array, "*lead"] | None:
  """Returns the valid examples, from `batch["valid"]`: bools (batch,) or (batch, *positions).

  Args:
    loss: the loss's name in error messages.
    batch: with "valid", or None there, where some examples are padding.
    lead: (batch, *positions).

  Returns:
    Bools of the shape `lead`; None if all examples are valid.

  Raises:
    UserError: "valid" is not bools, or of another shape.
  """
  valid = batch.get("valid")
  if valid is None:
    return None
  valid = array(valid)
  if valid.dtype != bool or not valid.ndim or valid.shape != lead[: valid.ndim]:
    raise UserError(f"the loss {loss!r} expects batch['valid'] to be bools {lead[:1]}{also(lead)}; got {what(valid)}")
  return spread(jnp.asarray(valid), lead)


def class_mask_of(loss: str, class_mask: Any, shape: Shape) -> Bool[Array, "*#lead classes"] | None:
  """Returns the valid classes as bools that broadcast to the logits.

  Args:
    loss: the loss's name in error messages.
    class_mask: (classes,), (batch, classes) or (batch, *positions, classes) bools; axes but the last may have the
      length 1. None if all classes are valid.
    shape: of the logits.

  Returns:
    (classes,), or as many axes as the logits.

  Raises:
    UserError: the mask is not bools, or of another shape.
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
  """Returns the numbers with NaN, in value and gradient, where `wrong`; the others are bitwise unchanged."""
  return numbers if wrong is None else numbers * jnp.where(wrong, jnp.nan, jnp.ones((), numbers.dtype))


def counted(wrong: Array, valid: Array | None) -> Array:
  """Returns the errors of valid entries only."""
  return wrong if valid is None else wrong & valid


def countable(labels: Any) -> Any:
  """Returns labels that compare with numbers: bools as 0 and 1, since strict dtype promotion refuses bools."""
  return labels.astype(np.int8) if labels.dtype == bool else labels


def is_number(labels: Any, number: int) -> Any:
  """Returns where labels equal a number; nowhere if their dtype cannot hold it: in uint8, -1 would be 255."""
  labels = countable(labels)
  if jnp.issubdtype(labels.dtype, jnp.integer):
    span = jnp.iinfo(labels.dtype)
    if not span.min <= number <= span.max:
      return np.zeros(labels.shape, bool)
  return labels == number


def array(x: Any) -> Any:
  """Converts to an array: numpy's for concrete values, so that no integer wraps around.

  What makes no array, such as lists of several lengths, becomes an array of dtype object, which every check refuses.
  """
  try:
    return np.asarray(x) if known(x) else jnp.asarray(x)
  except (TypeError, ValueError):
    shell = np.empty((), object)
    shell[()] = x
    return shell


def what(x: Any) -> str:
  """Formats the dtype and shape for an error message."""
  return f"{x.dtype} {x.shape}"


def also(several: Shape, shape: Shape | None = None) -> str:
  """Formats an alternative shape for an error message, if `several` has more than one axis."""
  return f" or {shape or several}" if len(several) > 1 else ""


def some(values: Any, wrong: Any) -> str:
  """Formats the wrong values for an error message."""
  bad = np.asarray(values)[np.asarray(wrong)]
  return f"{', '.join(map(str, bad[:3]))}{', ...' if len(bad) > 3 else ''} in {len(bad)} of {np.size(wrong)} places"
