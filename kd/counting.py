"""Which examples and positions count, and means over those: of all devices, and all micro-batches of an update.

Labels are (batch,) or (batch, *positions), and so are masks. A mean is a sum over the number that counts in the whole
batch, so neither a split over devices nor one into micro-batches changes it.
"""

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
UPDATE = "update"  # the key of a batch under which the labels and masks of all micro-batches of its update lie

STACKED = "expected what engine.masks_of gives of each of the update's micro-batches, stacked along the axis 1"
EMPTY = (
  "the batch is masked as a whole: expected 'valid' to leave an example, and 'class_mask' a class of it, that counts"
)


def counted(batch: Mapping[str, Any], mask: str, ignored: int | None = None) -> Array | None:
  """(batch,) or (batch, *positions) bools: what counts under a mask; None where everything does.

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
  """The batch's "valid", (batch,) or (batch, *positions) bools; None where everything counts."""
  valid = batch.get("valid")
  if valid is None:
    return None
  if not hasattr(valid, "dtype") or valid.dtype != bool or not valid.ndim:
    given = f"{valid.dtype} of shape {tuple(valid.shape)}" if hasattr(valid, "dtype") else f"a {type(valid).__name__}"
    raise UserError(f"the batch's 'valid' is {given}; expected bools, (batch,) or (batch, *positions)")
  return valid


def _all(masks: list[Array]) -> Array:
  """The conjunction of masks over examples and over their positions."""
  rank = max(mask.ndim for mask in masks)
  wide = [mask.reshape(mask.shape + (1,) * (rank - mask.ndim)) for mask in masks]
  out = wide[0]
  for mask in wide[1:]:
    if any(1 not in (a, b) and a != b for a, b in zip(out.shape, mask.shape, strict=True)):
      shapes = " and ".join(str(tuple(mask.shape)) for mask in masks)
      raise UserError(f"the batch's labels and masks have the shapes {shapes}; expected the same leading axes")
    out = out & mask
  return out


def fitted(valid: Array, shape: tuple[int, ...]) -> Array:
  """A mask for numbers of a shape: one over examples spreads over positions, of one over positions any is enough.

  Raises:
    UserError: the two have different positions.
  """
  if valid.ndim > len(shape):
    valid = jnp.any(valid, axis=tuple(range(len(shape), valid.ndim)))
  if valid.shape != shape[: valid.ndim]:
    raise UserError(f"a mask of shape {valid.shape} and numbers of shape {shape}: expected the same leading axes")
  return jnp.broadcast_to(valid.reshape(valid.shape + (1,) * (len(shape) - valid.ndim)), shape)


def batch_mean(
  numbers: Array, valid: Array | None, axis_name: str | None, update: Array | None = None, micro_batches: int = 1
) -> Array:
  """This device's part of the mean over what counts on all: that mean is the mean over devices of the parts.

  Args:
    numbers: (batch,) or (batch, *positions).
    valid: which of them count, or None for all; see `fitted`. What does not may be NaN, and gets no gradient.
    axis_name: the device axis, or None.
    update: with several micro-batches an update, the same mask for all their examples: the mean is then this
      micro-batch's part, too, and the mean over the micro-batches that of the update.
    micro_batches: so many.
  """
  if valid is None:
    return jnp.mean(numbers)
  valid = fitted(valid, numbers.shape)
  among = valid if micro_batches == 1 or update is None else fitted(update, (update.shape[0], *numbers.shape[1:]))
  wide = numbers.dtype if jnp.finfo(numbers.dtype).bits >= 32 else jnp.float32  # bfloat16 counts no further than 256
  count = axis.pmean(jnp.sum(among.astype(wide)) / micro_batches, axis_name)
  total = jnp.sum(jnp.where(valid, numbers, jnp.zeros_like(numbers)).astype(wide))
  return (total / jnp.where(count > 0, count, 1.0)).astype(numbers.dtype)


class Whole(NamedTuple):
  """The labels and masks of a whole update, with its micro-batches along the axis of the examples, and their number."""

  batch: Mapping[str, Any]
  micro_batches: int


def whole(batch: Mapping[str, Any]) -> Whole:
  """What an update counts over: all its micro-batches, or the batch itself where it is alone.

  Raises:
    UserError: the batch's "update" is not what `engine.masks_of` gives of several.
  """
  given = batch.get(UPDATE)
  if given is None:
    return Whole(batch, 1)
  if not isinstance(given, Mapping) or not given or any(getattr(a, "ndim", 0) < 2 for a in given.values()):
    shown = (
      {key: getattr(a, "shape", None) for key, a in given.items()}
      if isinstance(given, Mapping)
      else f"a {type(given).__name__}"
    )
    raise UserError(f"the batch's 'update' is {shown}; {STACKED}")
  count = next(iter(given.values())).shape[1]
  return Whole({key: a.reshape(a.shape[0] * count, *a.shape[2:]) for key, a in given.items()}, count)


def examples_left(batch: Mapping[str, Any], axis_name: str | None) -> Array | None:
  """How many examples count, with some class that counts; None where nothing is masked.

  Returns:
    A float32 scalar, this device's number times the devices: its mean over these is the number of the whole batch. Of
    an update in micro-batches it is their mean.

  Raises:
    UserError: none does, and the masks are known: inside jit the number is all that can be had.
  """
  every = whole(batch)
  examples, classes = valid_mask(every.batch), every.batch.get("class_mask", batch.get("class_mask"))
  if examples is None and classes is None:
    return None
  some = jnp.ones((), bool) if classes is None else jnp.any(classes, axis=-1)
  counted = some if examples is None else _all([examples, some])
  number = jnp.sum(counted.astype(jnp.float32)) * axis.size(axis_name) / every.micro_batches
  if not isinstance(number, jax.core.Tracer) and not number:
    raise UserError(EMPTY)
  return number


def shielded(x: Array, valid: Array | None) -> Array:
  """The same numbers, of whose examples and positions only those that count get a gradient.

  A number that is left out of a mean has the gradient 0, and 0 times a NaN on its way back is NaN.

  Args:
    x: (batch, ...) or (batch, *positions, ...).
    valid: (batch,) or (batch, *positions), or None for all.
  """
  if valid is None or not jnp.issubdtype(x.dtype, jnp.inexact) or x.shape[: valid.ndim] != valid.shape:
    return x
  return jnp.where(valid.reshape(valid.shape + (1,) * (x.ndim - valid.ndim)), x, jax.lax.stop_gradient(x))
