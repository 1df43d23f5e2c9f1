"""The inputs of a loss on logits, checked and flattened to rows, one row per example.

Logits are (batch, *positions, classes), with positions such as the words of a text or the pixels of an image. A loss is
written for (rows, classes); its result is reshaped to (batch, *positions). Invalid rows are replaced by 0 before
anything is computed: whatever padding holds, its loss and its gradient are exactly 0.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kd import checks
from kd.labels import Labels, labels_of
from leanax.core.errors import UserError


class Inputs(NamedTuple):
  """A loss's inputs as rows.

  Attributes:
    loss: the loss's name in error messages.
    student: (rows, classes), float32 or wider.
    teacher: of the same shape, a constant; None for a loss without a teacher.
    class_mask: bools that broadcast to (rows, classes), the valid classes; None for all.
    valid: (rows,) bools, the valid examples; None for all.
    lead: (batch, *positions).
    batch: unchanged.
  """

  loss: str
  student: Float[Array, "rows classes"]
  teacher: Float[Array, "rows classes"] | None
  class_mask: Bool[Array, "#rows classes"] | Bool[Array, " classes"] | None
  valid: Bool[Array, " rows"] | None
  lead: tuple[int, ...]
  batch: Mapping[str, Any]

  def labels(self) -> Labels:
    """Returns the labels as rows; see `kd.labels.labels_of`."""
    return labels_of(
      self.loss, self.batch, self.lead, self.student.shape[-1], valid=self.valid, class_mask=self.class_mask
    )

  @property
  def counts(self) -> Bool[Array, "#rows #classes"] | None:
    """The valid logits: bools that broadcast to (rows, classes); None for all."""
    if self.valid is None or self.class_mask is None:
      return self.class_mask if self.valid is None else self.valid[:, None]
    return self.valid[:, None] & self.class_mask

  def target(self, key: str) -> Float[Array, "rows classes"]:
    """Returns `batch[key]`, floats of the logits' shape, as rows: a constant, 0 where a logit is not valid.

    Raises:
      UserError: the batch has no such key, or its value is not floats of that shape.
    """
    shape = (*self.lead, self.student.shape[-1])
    if key not in self.batch:
      raise UserError(f"the loss {self.loss!r} needs a batch with {key!r}, floats {shape}")
    given = checks.array(self.batch[key])
    if not jnp.issubdtype(given.dtype, jnp.floating) or given.shape != shape:
      raise UserError(
        f"the loss {self.loss!r} expects batch[{key!r}] to be floats {shape}, as the logits; "
        f"got {given.dtype} {given.shape}"
      )
    given = jnp.asarray(given.reshape(-1, shape[-1]), self.student.dtype)
    return jax.lax.stop_gradient(given if self.counts is None else jnp.where(self.counts, given, 0.0))

  def per_example(self, per_row: Array, wrong: Array | None = None) -> Float[Array, "*lead"]:
    """Returns the loss per row as the loss per example, 0 for invalid examples.

    Args:
      per_row: (rows,).
      wrong: (rows,) bools, valid rows whose loss is NaN; None for none.

    Raises:
      UserError: the loss is not one number per row.
    """
    shape = getattr(per_row, "shape", None)
    if shape != self.student.shape[:1]:
      given = type(per_row).__name__ if shape is None else f"numbers {shape}"
      raise UserError(
        f"the loss {self.loss!r} gives {given} for logits {self.student.shape}; expected one per example, "
        f"{self.student.shape[:1]}"
      )
    per_row = checks.nan_where(wrong, per_row)
    return (per_row if self.valid is None else jnp.where(self.valid, per_row, 0.0)).reshape(self.lead)


def widen(logits: Array) -> Array:
  """Casts floats narrower than float32 to float32; all others stay as they are."""
  narrow = jnp.issubdtype(logits.dtype, jnp.floating) and jnp.finfo(logits.dtype).bits < 32
  return logits.astype(jnp.float32) if narrow else logits


def read(
  loss: str,
  student: Any,
  teacher: Any = None,
  batch: Mapping[str, Any] | None = None,
  class_mask: Any = None,
  classes: int = 2,
) -> Inputs:
  """Checks a loss's inputs and returns them as rows.

  Args:
    loss: the loss's name in error messages.
    student: logits (batch, *positions, classes), of any float dtype.
    teacher: logits of the same shape; None where the loss reads none.
    batch: with "valid", (batch,) or (batch, *positions) bools, where some examples are padding.
    class_mask: the valid classes; see `kd.checks.class_mask_of`.
    classes: the smallest valid number of classes: a softmax over one class is always 1.

  Raises:
    UserError: the logits or a mask have another shape or dtype.
  """
  batch = checks.batch_of(loss, batch)
  found = [_logits(loss, "student", student), *([] if teacher is None else [_logits(loss, "teacher", teacher)])]
  shape = found[0].shape
  if found[-1].shape != shape:
    raise UserError(
      f"the loss {loss!r} compares logits of one shape; got {shape} of the student, {found[-1].shape} of the teacher"
    )
  if shape[-1] < classes:
    raise UserError(
      f"the loss {loss!r} compares distributions over classes, and logits {shape} have {shape[-1]}: a softmax over one "
      "class is always 1; expected two or more, or a loss on single outputs, as "
      "sigmoid_cross_entropy, bernoulli_kl and squared_error are"
    )
  lead = shape[:-1]
  class_mask = checks.class_mask_of(loss, class_mask, shape)
  valid = checks.valid_of(loss, batch, lead)
  if len(lead) > 1:
    found = [x.reshape(-1, shape[-1]) for x in found]
    valid = None if valid is None else valid.reshape(-1)
    if class_mask is not None and class_mask.ndim > 1:
      class_mask = jnp.broadcast_to(class_mask, shape).reshape(-1, shape[-1])
  found = [_zero_invalid(x.astype(found[0].dtype), valid) for x in found]
  constant = None if teacher is None else jax.lax.stop_gradient(found[-1])
  return Inputs(loss, found[0], constant, class_mask, valid, lead, batch)


def _logits(loss: str, network: str, given: Any) -> Array:
  """Returns logits in float32 or wider."""
  if not hasattr(given, "dtype") or not jnp.issubdtype(given.dtype, jnp.floating) or given.ndim < 2:
    what = f"{given.dtype} {given.shape}" if hasattr(given, "dtype") else type(given).__name__
    raise UserError(
      f"the loss {loss!r} reads logits (batch, *positions, classes), floats, of the {network}; got {what}"
    )
  return widen(jnp.asarray(given))


def _zero_invalid(x: Array, valid: Array | None) -> Array:
  """Returns the rows with 0 in the invalid ones."""
  return x if valid is None else jnp.where(valid[:, None], x, 0.0)
