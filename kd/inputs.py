"""The inputs of a loss on logits, checked and laid out as rows of which each is an example.

Logits are (batch, *positions, classes): one axis more than two for the words of a text or the places of an image. A
loss is written for (rows, classes), and its numbers get the shape (batch, *positions) again. What does not count is
replaced by 0 before anything is computed: whatever padding holds, its number and its gradient are exactly 0.
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
    loss: how errors call the loss.
    student: (rows, classes), float32 or wider.
    teacher: as the student's, a constant; None for a loss without a teacher.
    class_mask: bools that broadcast to (rows, classes), which classes count; None for all.
    valid: (rows,) bools, which examples count; None for all.
    lead: (batch, *positions).
    batch: as it was given.
  """

  loss: str
  student: Float[Array, "rows classes"]
  teacher: Float[Array, "rows classes"] | None
  class_mask: Bool[Array, "#rows classes"] | Bool[Array, " classes"] | None
  valid: Bool[Array, " rows"] | None
  lead: tuple[int, ...]
  batch: Mapping[str, Any]

  def labels(self) -> Labels:
    """The labels as rows; see `kd.labels.labels_of`."""
    return labels_of(
      self.loss, self.batch, self.lead, self.student.shape[-1], valid=self.valid, class_mask=self.class_mask
    )

  @property
  def counts(self) -> Bool[Array, "#rows #classes"] | None:
    """Bools that broadcast to (rows, classes), which logits count; None for all."""
    if self.valid is None or self.class_mask is None:
      return self.class_mask if self.valid is None else self.valid[:, None]
    return self.valid[:, None] & self.class_mask

  def target(self, key: str) -> Float[Array, "rows classes"]:
    """`batch[key]`, floats of the logits' shape, as rows: a constant, 0 in what does not count.

    Raises:
      UserError: the batch has none, or it is no floats of that shape.
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

  def numbers(self, per_row: Array, wrong: Array | None = None) -> Float[Array, "*lead"]:
    """The numbers of the rows as those of the examples.

    Args:
      per_row: (rows,).
      wrong: (rows,) bools, which are NaN, of those that count; None for none.

    Raises:
      UserError: they are not one number a row.
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
  """The logits in float32, or as they are where they are wider, or no floats."""
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
  """A loss's inputs, checked.

  Args:
    loss: how errors call the loss.
    student: logits (batch, *positions, classes), of any float dtype.
    teacher: logits of the same shape; None where the loss reads none.
    batch: with "valid", (batch,) or (batch, *positions) bools, where some examples do not count.
    class_mask: which classes count; see `kd.checks.class_mask_of`.
    classes: the least number of classes that mean something: a softmax over one is 1 whatever its logit.

  Raises:
    UserError: the logits are no such arrays, or a mask is none.
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
  found = [_counting(x.astype(found[0].dtype), valid) for x in found]
  own, other = found[0], None if teacher is None else jax.lax.stop_gradient(found[-1])
  return Inputs(loss, own, other, class_mask, valid, lead, batch)


def _logits(loss: str, whose: str, given: Any) -> Array:
  """Logits in float32 or wider."""
  if not hasattr(given, "dtype") or not jnp.issubdtype(given.dtype, jnp.floating) or given.ndim < 2:
    what = f"{given.dtype} {given.shape}" if hasattr(given, "dtype") else type(given).__name__
    raise UserError(f"the loss {loss!r} reads logits (batch, *positions, classes), floats, of the {whose}; got {what}")
  return widen(jnp.asarray(given))


def _counting(x: Array, valid: Array | None) -> Array:
  """Rows with 0 in those that do not count."""
  return x if valid is None else jnp.where(valid[:, None], x, 0.0)
