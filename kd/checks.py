"""What every loss checks of masks and labels: a wrong shape or type is one sentence, never broadcast, and a label that
names no class is refused where its value is known and NaN where it is not.

The examples of a batch are counted by its first axes: (batch,) of logits (batch, classes), and (batch, *positions) of
logits (batch, *positions, classes), where every position is an example of its own.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from core.errors import UserError

Shape = tuple[int, ...]


class Labels(NamedTuple):
  """Labels that may be used as they are: every one is an index.

  Attributes:
    index: int32, which class each example has; 0 where it has none.
    mix_index: of mixed examples (mixup) the other label; None where none is mixed.
    mix: the weight of `index`; the rest is that of `mix_index`.
    wrong: bools, the examples that count and have no label, or no weight of it: their numbers are NaN. None where it is
      known that there are none.
  """

  index: Array
  mix_index: Array | None = None
  mix: Array | None = None
  wrong: Array | None = None


def known(*arrays: Any) -> bool:
  """Whether the values are there, as they are outside jit."""
  return not any(isinstance(array, jax.core.Tracer) for array in arrays)


def spread(mask: Array, like: Shape) -> Array:
  """A mask over the first axes of a shape as one over all: (batch,) counts for every position."""
  return jnp.broadcast_to(mask.reshape(*mask.shape, *(1,) * (len(like) - mask.ndim)), like)


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
  valid = _array(valid)
  if valid.dtype != bool or not valid.ndim or valid.shape != lead[: valid.ndim]:
    raise UserError(f"the loss {loss!r} expects batch['valid'] to be bools {lead[:1]}{_or(lead)}; got {_what(valid)}")
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
  mask = _array(class_mask)
  lead = mask.shape[:-1]
  fits = mask.shape[-1:] == shape[-1:] and mask.ndim <= len(shape)
  if mask.dtype != bool or not fits or any(a not in (1, b) for a, b in zip(lead, shape)):
    raise UserError(
      f"the loss {loss!r} expects class_mask to be bools {shape[-1:]} or {(shape[0], shape[-1])}{_or(shape)}; "
      f"got {_what(mask)}"
    )
  mask = jnp.asarray(mask)
  return mask if mask.ndim == 1 else mask.reshape(*lead, *(1,) * (len(shape) - mask.ndim), shape[-1])


def labels_of(
  loss: str,
  batch: Mapping[str, Any],
  lead: Shape,
  classes: int,
  valid: Array | None = None,
  class_mask: Array | None = None,
) -> Labels:
  """The labels of a batch as rows.

  A label has to name a class that counts, unless its example does not count, or has no class that does. What names none
  is replaced by 0 before anything is computed, so that it has no part in any gradient.

  Args:
    loss: how errors call the loss.
    batch: with "label", integers of the shape `lead`, and of mixed examples "mix_label", as many, and "mix", floats
      from 0 to 1 of the shape `lead` or (batch,).
    lead: (batch, *positions).
    classes: how many there are.
    valid: (rows,) bools, which examples count; None for all.
    class_mask: bools that broadcast to (rows, classes), which classes count; None for all.

  Returns:
    Each of its arrays is (rows,), with as many rows as `lead` has places.

  Raises:
    UserError: the batch has no labels, or they are no integers of that shape; or they are known and one names no class.
  """
  if "label" not in batch:
    raise UserError(f"the loss {loss!r} needs labels, and the batch has no 'label'")
  about = lead, classes, valid, class_mask
  index, wrong = _index(loss, "label", batch["label"], *about)
  if ("mix" in batch) != ("mix_label" in batch):
    raise UserError(f"the loss {loss!r} expects 'mix' and 'mix_label' together, and the batch has one of them")
  if "mix" not in batch:
    return Labels(index, wrong=wrong)
  other, also = _index(loss, "mix_label", batch["mix_label"], *about)
  mix = _array(batch["mix"])
  if not jnp.issubdtype(mix.dtype, jnp.floating) or not mix.ndim or mix.shape != lead[: mix.ndim]:
    raise UserError(f"the loss {loss!r} expects batch['mix'] to be floats {lead[:1]}{_or(lead)}; got {_what(mix)}")
  mix = spread(jnp.asarray(mix), lead).reshape(-1)
  no_share = _counted(~((mix >= 0) & (mix <= 1)), valid)
  if known(no_share) and np.any(no_share):
    raise UserError(f"the loss {loss!r} expects batch['mix'] to be weights from 0 to 1; got {_some(mix, no_share)}")
  wrongs = [w for w in (wrong, also, no_share) if w is not None and not known(w)]
  return Labels(index, other, mix, functools.reduce(jnp.logical_or, wrongs) if wrongs else None)


def labelled(batch: Mapping[str, Any], ignore_label: int = -1) -> Array:
  """Which examples, or positions, have a label: bools of the labels' shape, for `batch["valid"]`.

  Args:
    batch: with "label", and "mix_label" where examples are mixed: one that is mixed with an ignored one has no label
      for a part of its image.
    ignore_label: the number that stands where there is no label, such as -1, 255 or -100.
  """
  has = _array(batch["label"]) != ignore_label
  return jnp.asarray(has & (_array(batch["mix_label"]) != ignore_label) if "mix_label" in batch else has)


def nan_where(wrong: Array | None, numbers: Array) -> Array:
  """The numbers, NaN where something is wrong, and their gradient too; the bits of the others are what they were."""
  return numbers if wrong is None else numbers * jnp.where(wrong, jnp.nan, jnp.ones((), numbers.dtype))


def _index(
  loss: str, key: str, given: Any, lead: Shape, classes: int, valid: Array | None, class_mask: Array | None
) -> tuple[Array, Array | None]:
  """(int32 indices (rows,), which of those that count are none); None where it is known that all are."""
  labels = _array(given)
  if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != lead:
    raise UserError(
      f"the loss {loss!r} expects batch[{key!r}] to be integers {lead}, a class of each example; got {_what(labels)}"
    )
  labels = labels.reshape(-1)
  right = labels >= 0
  if classes <= jnp.iinfo(labels.dtype).max:  # the number of classes may not fit the labels' own dtype
    right = right & (labels < classes)
  index = jnp.asarray((np if known(labels) else jnp).where(right, labels, 0), jnp.int32)
  if class_mask is not None:
    rows = jnp.broadcast_to(class_mask, (labels.size, classes))
    right = right & (jnp.take_along_axis(rows, index[:, None], -1)[:, 0] | ~jnp.any(rows, -1))
  wrong = _counted(~right, valid)
  if not known(wrong):
    return index, wrong
  if np.any(wrong):
    masked = "" if class_mask is None else ", of a class that class_mask leaves"
    raise UserError(
      f"the loss {loss!r} expects batch[{key!r}] to be from 0 to {classes - 1}{masked}; got {_some(labels, wrong)}; "
      "what has no label is left out by batch['valid'], which kd.labelled makes"
    )
  return index, None


def _counted(wrong: Array, valid: Array | None) -> Array:
  return wrong if valid is None else wrong & valid


def _array(x: Any) -> Any:
  """What has a shape and a dtype: values that are known as numpy's, so that nothing wraps on the way."""
  return np.asarray(x) if known(x) else x


def _what(x: Any) -> str:
  return f"{x.dtype} {x.shape}"


def _or(shape: Sequence[int]) -> str:
  return "" if len(shape) < 2 else f" or {tuple(shape)}"


def _some(values: Any, wrong: Any) -> str:
  bad = np.asarray(values)[np.asarray(wrong)]
  return f"{', '.join(map(str, bad[:3]))}{', ...' if len(bad) > 3 else ''} in {len(bad)} of {len(wrong)} examples"
