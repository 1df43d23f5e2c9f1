"""The labels of a batch, checked: what is no index is refused where its value is known, and makes its example's number
NaN where it is not; shapes and types are refused in one sentence.
"""

import functools
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kd import checks
from leanax.core.errors import UserError


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


def labels_of(
  loss: str,
  batch: Mapping[str, Any],
  lead: checks.Shape,
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
  mix, no_share = mix_of(loss, batch, lead, valid)
  if mix is None:
    return Labels(index, wrong=wrong)
  other, also = _index(loss, "mix_label", batch["mix_label"], *about)
  wrongs = [w for w in (wrong, also, no_share) if w is not None]
  return Labels(index, other, mix, functools.reduce(jnp.logical_or, wrongs) if wrongs else None)


def mix_of(
  loss: str, batch: Mapping[str, Any], lead: checks.Shape, valid: Array | None = None
) -> tuple[Array | None, Array | None]:
  """The weight of "label" in mixed examples (mixup), the rest is that of "mix_label": (rows,) floats, None without.

  Returns:
    The weights, and which examples that count have none from 0 to 1; None where it is known that all have.

  Raises:
    UserError: there is a weight without the other label, or the other way round; or it is no float of the shape `lead`
      or (batch,); or the weights are known and one is not from 0 to 1.
  """
  if ("mix" in batch) != ("mix_label" in batch):
    raise UserError(f"the loss {loss!r} expects 'mix' and 'mix_label' together, and the batch has one of them")
  if "mix" not in batch:
    return None, None
  mix = checks.array(batch["mix"])
  if not jnp.issubdtype(mix.dtype, jnp.floating) or not mix.ndim or mix.shape != lead[: mix.ndim]:
    raise UserError(
      f"the loss {loss!r} expects batch['mix'] to be floats {lead[:1]}{checks.also(lead)}; got {checks.what(mix)}"
    )
  mix = checks.spread(jnp.asarray(mix), lead).reshape(-1)
  wrong = checks.counted(~((mix >= 0) & (mix <= 1)), valid)
  if not checks.known(wrong):
    return mix, wrong
  if np.any(wrong):
    raise UserError(f"the loss {loss!r} expects batch['mix'] to be weights from 0 to 1; got {checks.some(mix, wrong)}")
  return mix, None


def switches_of(
  loss: str, batch: Mapping[str, Any], key: str, shape: checks.Shape, dtype: Any, counts: Array | None = None
) -> Array:
  """Which outputs are on, (rows, outputs) floats: 0 or 1, or a probability.

  Args:
    loss: how errors call the loss.
    batch: its `key` has bools, integers or floats of the logits' shape, or without the last axis where that is 1.
    key: "label" or "mix_label".
    shape: of the logits, (batch, *positions, outputs).
    dtype: of the result.
    counts: bools that broadcast to (rows, outputs), which outputs count; None for all.

  Returns:
    Constants; 0 where an output does not count, and NaN where it does and its number is not from 0 to 1.

  Raises:
    UserError: the batch has no labels, or of another shape; or they are known and one is not from 0 to 1.
  """
  if key not in batch:
    raise UserError(f"the loss {loss!r} needs labels, and the batch has no {key!r}")
  given = checks.array(batch[key])
  real = any(jnp.issubdtype(given.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
  if not real or given.shape not in (shape, *([shape[:-1]] if shape[-1] == 1 else [])):
    also = f" or {shape[:-1]}" if shape[-1] == 1 else ""
    raise UserError(
      f"the loss {loss!r} expects batch[{key!r}] to say whether each output is on, bools or numbers from 0 to 1 of the "
      f"shape {shape}{also}; got {checks.what(given)}"
    )
  given = checks.countable(given.reshape(-1, shape[-1]))
  wrong = checks.counted(~((given >= 0) & (given <= 1)), counts)
  if checks.known(wrong) and np.any(wrong):
    raise UserError(f"the loss {loss!r} expects batch[{key!r}] to be from 0 to 1; got {checks.some(given, wrong)}")
  on = jnp.where(wrong, jnp.nan, jnp.asarray(given, dtype))
  return jax.lax.stop_gradient(on if counts is None else jnp.where(counts, on, 0.0))


def labelled(batch: Mapping[str, Any], ignore_label: int = -1) -> Array:
  """Which examples, or positions, have a label: bools of the labels' shape, for `batch["valid"]`.

  Args:
    batch: with "label", and "mix_label" where examples are mixed: one that is mixed with an ignored one has no label
      for a part of its image.
    ignore_label: the number that stands where there is no label, such as -1, 255 or -100.

  Raises:
    UserError: the batch has no labels, or `ignore_label` is no whole number.
  """
  if not isinstance(batch, Mapping):
    raise UserError(
      f"kd.labelled reads batch['label'] of a batch, such as {{'label': labels}}; got {type(batch).__name__}"
    )
  if "label" not in batch:
    raise UserError("kd.labelled reads batch['label'], and the batch has no 'label'")
  if not isinstance(ignore_label, int | np.integer) or isinstance(ignore_label, bool):
    raise UserError(f"kd.labelled: ignore_label is {ignore_label!r}; expected a whole number, such as -1 or 255")
  has = [~checks.is_number(checks.array(batch[key]), ignore_label) for key in ("label", "mix_label") if key in batch]
  return jnp.asarray(functools.reduce(operator.and_, has))


def _index(
  loss: str, key: str, given: Any, lead: checks.Shape, classes: int, valid: Array | None, class_mask: Array | None
) -> tuple[Array, Array | None]:
  """(int32 indices (rows,), which of those that count are none); None where it is known that all are."""
  labels = checks.array(given)
  if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != lead:
    raise UserError(
      f"the loss {loss!r} expects batch[{key!r}] to be integers {lead}, a class of each example; "
      f"got {checks.what(labels)}"
    )
  labels = labels.reshape(-1)
  right = labels >= 0
  if classes <= jnp.iinfo(labels.dtype).max:  # the number of classes may not fit the labels' own dtype
    right = right & (labels < classes)
  index = jnp.asarray((np if checks.known(labels) else jnp).where(right, labels, 0), jnp.int32)
  if class_mask is not None:
    rows = jnp.broadcast_to(class_mask, (labels.size, classes))
    right = right & (jnp.take_along_axis(rows, index[:, None], -1)[:, 0] | ~jnp.any(rows, -1))
  wrong = checks.counted(~right, valid)
  if not checks.known(wrong):
    return index, wrong
  if np.any(wrong):
    masked = "" if class_mask is None else ", of a class that class_mask leaves"
    raise UserError(
      f"the loss {loss!r} expects batch[{key!r}] to be from 0 to {classes - 1}{masked}; "
      f"got {checks.some(labels, wrong)}; what has no label is left out by batch['valid'], which kd.labelled makes"
    )
  return index, None
