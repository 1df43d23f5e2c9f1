"""Masks of the examples and positions that count, and means over those of all devices and micro-batches.

Labels are (batch,) or (batch, *positions), and so are masks. A mean is a sum over the number that counts in the whole
batch, so neither a split over devices nor one into micro-batches changes it.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd import checks
from kd.labels import labelled
from leanax.core import axis
from leanax.core.errors import UserError

MASKS = ("all", "labelled", "unlabelled")
Count = tuple[Array, ...]

EMPTY = "the masks exclude the whole batch: expected 'valid' to keep an example, and 'class_mask' a class of it"


def counted(batch: Mapping[str, Any], mask: str, ignored: int | None = None) -> Array | None:
  """Returns (batch,) or (batch, *positions) bools, what counts under a mask; None where everything does.

  Args:
    batch: with "valid", "label" and "mix_label" as far as there are any.
    mask: one of `MASKS`. A label is known where it is 0 or more and not the ignored one.
    ignored: a label that leaves its example or position out of every mean.
  """
  valid = valid_mask(batch)
  if "label" not in batch or (mask == "all" and ignored is None):
    return valid
  labels = [batch[key] for key in ("label", "mix_label") if key in batch]
  # An example that is mixed with an unlabelled one has no label for a part of its image.
  known = _all([checks.countable(label) >= 0 for label in labels])
  chosen = {"all": [], "labelled": [known], "unlabelled": [~known]}[mask]
  if ignored is not None:
    chosen = [*chosen, labelled(batch, ignored)]
  return _all(chosen if valid is None else [*chosen, valid])


def valid_mask(batch: Mapping[str, Any]) -> Array | None:
  """Returns the batch's "valid", (batch,) or (batch, *positions) bools; None where everything counts."""
  valid = batch.get("valid")
  if valid is None:
    return None
  if not hasattr(valid, "dtype") or valid.dtype != bool or not valid.ndim:
    given = f"{valid.dtype} of shape {tuple(valid.shape)}" if hasattr(valid, "dtype") else f"a {type(valid).__name__}"
    raise UserError(f"the batch's 'valid' is {given}; expected bools, (batch,) or (batch, *positions)")
  return valid


def _all(masks: list[Array]) -> Array:
  """Returns the conjunction of masks over examples and over their positions."""
  rank = max(mask.ndim for mask in masks)
  expanded = [mask.reshape(mask.shape + (1,) * (rank - mask.ndim)) for mask in masks]
  out = expanded[0]
  for mask in expanded[1:]:
    if any(1 not in (a, b) and a != b for a, b in zip(out.shape, mask.shape, strict=True)):
      shapes = " and ".join(str(tuple(mask.shape)) for mask in masks)
      raise UserError(f"the batch's labels and masks have the shapes {shapes}; expected the same leading axes")
    out = out & mask
  return out


def fitted(valid: Array, shape: tuple[int, ...]) -> Array:
  """Returns a mask for numbers of a shape: over positions it is repeated, or any position of an example is enough.

  Raises:
    UserError: the two have different positions.
  """
  if valid.ndim > len(shape):
    valid = jnp.any(valid, axis=tuple(range(len(shape), valid.ndim)))
  if valid.shape != shape[: valid.ndim]:
    raise UserError(f"a mask of shape {valid.shape} and numbers of shape {shape}: expected the same leading axes")
  return jnp.broadcast_to(valid.reshape(valid.shape + (1,) * (len(shape) - valid.ndim)), shape)


class Counts(NamedTuple):
  """The amounts of a batch that count: in one of its parts, or added over all micro-batches and devices.

  Attributes:
    terms: by the name of each term, what `count` returns.
    examples: how many examples count, with some class that counts; None where nothing is masked.
    parts: how many parts of the batch were counted.
  """

  terms: Mapping[str, Count | None]
  examples: Array | None
  parts: Array


def count(valid: Array | None) -> Count | None:
  """Returns how much counts under a mask, for numbers of each rank: [k] is over its first k + 1 axes; see `fitted`."""
  if valid is None:
    return None
  ranks = range(1, valid.ndim + 1)
  masks = [jnp.any(valid, axis=tuple(range(rank, valid.ndim))) for rank in ranks]
  return tuple(jnp.sum(mask.astype(jnp.float32)) for mask in masks)


def batch_mean(
  numbers: Array,
  valid: Array | None,
  axis_name: str | None,
  whole: Count | None = None,
  parts: Array | float | None = None,
) -> Array:
  """Returns this part of the mean over what counts in all parts of a batch: the mean over the parts is that mean.

  Args:
    numbers: (batch,) or (batch, *positions).
    valid: which of them count, or None for all; see `fitted`. What does not may be NaN, and gets no gradient.
    axis_name: the device axis, or None. Without `whole` the devices' shares are the parts.
    whole: what counts in all parts together, as `count` returns it.
    parts: how many parts there are, with `whole`: devices times micro-batches, of equal size.
  """
  if valid is None:
    return jnp.mean(numbers)
  if whole is None:
    whole, parts = axis.psum(count(valid), axis_name), axis.size(axis_name)
  assert whole is not None and parts is not None
  dtype = numbers.dtype if jnp.finfo(numbers.dtype).bits >= 32 else jnp.float32  # bfloat16 counts no further than 256
  positions = math.prod(numbers.shape[len(whole) :])  # a mask over examples counts all their positions
  each = whole[min(numbers.ndim, len(whole)) - 1].astype(dtype) * positions / jnp.asarray(parts, dtype)
  total = jnp.sum(jnp.where(fitted(valid, numbers.shape), numbers, jnp.zeros_like(numbers)).astype(dtype))
  return (total / jnp.where(each > 0, each, 1.0)).astype(numbers.dtype)


def examples(batch: Mapping[str, Any]) -> Array | None:
  """Returns how many examples count, with some class that counts, a float32 scalar; None where nothing is masked."""
  valid, classes = valid_mask(batch), batch.get("class_mask")
  if valid is None and classes is None:
    return None
  some = jnp.ones((), bool) if classes is None else jnp.any(classes, axis=-1)
  return jnp.sum((some if valid is None else _all([valid, some])).astype(jnp.float32))


def shielded(x: Array, valid: Array | None) -> Array:
  """Returns the same numbers, of whose examples and positions only those that count get a gradient.

  A number that is left out of a mean has the gradient 0, and 0 times a NaN on its way back is NaN.

  Args:
    x: (batch, ...) or (batch, *positions, ...).
    valid: (batch,) or (batch, *positions), or None for all.
  """
  if valid is None or not jnp.issubdtype(x.dtype, jnp.inexact) or x.shape[: valid.ndim] != valid.shape:
    return x
  return jnp.where(valid.reshape(valid.shape + (1,) * (x.ndim - valid.ndim)), x, jax.lax.stop_gradient(x))
