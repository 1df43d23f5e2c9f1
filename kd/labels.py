"""Checks of a batch's labels. A label out of range is refused outside jit, and makes its example's loss NaN inside jit;
wrong shapes and types are refused in one sentence.
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
  """Checked labels: every one is a valid index.

  Attributes:
    index: int32, the class of each example; 0 where it has none.
    mix_index: the other label of mixed examples (mixup); None without mixup.
    mix: the weight of `index`; `mix_index` has the weight 1 - mix.
    wrong: bools, the valid examples without a valid label or weight: their loss is NaN. None if there are none.
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
  """Returns the labels of a batch as rows.

  The label of a valid example must be a valid class, if the example has any. Any other label is replaced by 0 before
  anything is computed, so that it takes part in no gradient.

  Args:
    loss: the loss's name in error messages.
    batch: with "label", integers of the shape `lead`; for mixed examples also "mix_label", of the same shape, and
      "mix", floats from 0 to 1 of the shape `lead` or (batch,).
    lead: (batch, *positions).
    classes: the number of classes.
    valid: (rows,) bools, the valid examples; None for all.
    class_mask: bools that broadcast to (rows, classes), the valid classes; None for all.

  Returns:
    Labels whose arrays are (rows,), rows = prod(lead).

  Raises:
    UserError: the batch has no labels, or they are not integers of that shape; outside jit, a label is no class.
  """
  if "label" not in batch:
    raise UserError(f"the loss {loss!r} needs labels, and the batch has no 'label'")
  common = lead, classes, valid, class_mask
  index, wrong = _index(loss, "label", batch["label"], *common)
  mix, wrong_mix = mix_of(loss, batch, lead, valid)
  if mix is None:
    return Labels(index, wrong=wrong)
  mix_index, wrong_other = _index(loss, "mix_label", batch["mix_label"], *common)
  wrongs = [w for w in (wrong, wrong_other, wrong_mix) if w is not None]
  return Labels(index, mix_index, mix, functools.reduce(jnp.logical_or, wrongs) if wrongs else None)


def mix_of(
  loss: str, batch: Mapping[str, Any], lead: checks.Shape, valid: Array | None = None
) -> tuple[Array | None, Array | None]:
  """Returns the weight of "label" in mixed examples (mixup); "mix_label" has the weight 1 - mix.

  Returns:
    (rows,) weights, None without mixup; and bools, the valid examples whose weight is not from 0 to 1, None if there
    are none.

  Raises:
    UserError: "mix" is there without "mix_label", or the other way round; it is not floats of the shape `lead` or
      (batch,); outside jit, a weight is not from 0 to 1.
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
  """Returns binary labels of each output as (rows, outputs) floats: 0 or 1, or a probability.

  Args:
    loss: the loss's name in error messages.
    batch: its `key` has bools, integers or floats of the logits' shape, or without the last axis where that is 1.
    key: "label" or "mix_label".
    shape: of the logits, (batch, *positions, outputs).
    dtype: of the result.
    counts: bools that broadcast to (rows, outputs), the valid outputs; None for all.

  Returns:
    Constants; 0 for an invalid output, and NaN for a valid one whose label is not from 0 to 1.

  Raises:
    UserError: the batch has no labels, or of another shape; outside jit, a label is not from 0 to 1.
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
  """Returns the examples, or positions, that have a label: bools of the labels' shape, for `batch["valid"]`.

  Args:
    batch: with "label", and "mix_label" where examples are mixed; both labels of an example must be known.
    ignore_label: the number that marks a missing label, such as -1, 255 or -100.

  Raises:
    UserError: the batch has no labels, or `ignore_label` is not a whole number.
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
  """Returns int32 indices (rows,), and bools, the valid rows whose label is no class, None if there are none."""
  labels = checks.array(given)
  if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != lead:
    raise UserError(
      f"the loss {loss!r} expects batch[{key!r}] to be integers {lead}, one class per example; "
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
    masked = "" if class_mask is None else ", a class that class_mask keeps"
    raise UserError(
      f"the loss {loss!r} expects batch[{key!r}] to be from 0 to {classes - 1}{masked}; "
      f"got {checks.some(labels, wrong)}; mask examples without a label by batch['valid'], see kd.labelled"
    )
  return index, None
