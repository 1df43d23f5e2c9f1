"""Compact storage of teacher logits, encoded on the host and decoded inside jit.

| form | bytes for C classes | decoded |
| --- | --- | --- |
| float32 | 4 C | bitwise equal |
| float16 | 2 C | each logit rounded to 11 bits; a loss on shifted logits sees the same relative error |
| int8 | C + 8 | each logit within 1/508 of its example's range, plus float32's rounding (below) |
| top_k=k | k values (float32 or float16) and their classes + 4 | the k largest, and the rest's mass as one bucket |

The int8 form has one scale and one offset per example. Both are float32, and so is their sum: this adds up to 2^-22 of
the example's largest magnitude, which is below 1/508 of the range unless all logits are large and nearly equal.

The bucket holds the logsumexp of the other classes: the distribution over (k classes, "the rest") is exact at
temperature 1, and its KL never exceeds that of all classes (the data processing inequality). Decoding spreads the
bucket evenly over the rest; at a temperature above 1 this has more mass than the true distribution (Jensen).
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from leanax.core.errors import UserError, unknown

FORMS = ("float32", "float16", "int8")
LOGITS = "teacher_logits"
CODES, SCALE, OFFSET = "teacher_codes", "teacher_scale", "teacher_offset"
VALUES, CLASSES, TAIL = "teacher_values", "teacher_classes", "teacher_tail"
STEPS = 127  # int8 codes go from -STEPS to STEPS


class Field(NamedTuple):
  """One array of a form: the shape per example, and numpy's name of the dtype."""

  shape: tuple[int, ...]
  dtype: str


def fields(classes: int, form: str, top_k: int | None = None) -> dict[str, Field]:
  """Returns the arrays of a form, by name.

  Raises:
    UserError: there is no such form, or top_k does not fit.
  """
  if form not in FORMS:
    raise unknown("form of stored logits", form, FORMS)
  if top_k is None:
    if form == "int8":
      return {CODES: Field((classes,), "|i1"), SCALE: Field((), "<f4"), OFFSET: Field((), "<f4")}
    return {LOGITS: Field((classes,), _float(form))}
  if form == "int8":
    raise UserError("top_k stores values as float32 or float16; got form 'int8'")
  if not 1 <= top_k < classes:
    raise UserError(f"top_k is {top_k}; expected 1 to {classes - 1}, below the number of classes")
  index = "|u1" if classes <= 2**8 else "<u2" if classes <= 2**16 else "<i4"
  return {VALUES: Field((top_k,), _float(form)), CLASSES: Field((top_k,), index), TAIL: Field((), "<f4")}


def _float(form: str) -> str:
  return {"float32": "<f4", "float16": "<f2"}[form]


def bytes_needed(
  examples: int, classes: int, views: int, form: str, top_k: int | None = None, *, mixed: bool = False
) -> int:
  """Returns the bytes of a set's stored logits, without the files' headers (128 bytes each).

  Args:
    examples: number of examples.
    classes: number of logits per example.
    views: number of views per example.
    form: one of FORMS.
    top_k: see above.
    mixed: whether mixup's partner and weight are stored.
  """
  each = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in fields(classes, form, top_k).values())
  return examples * views * (each + (8 if mixed else 0))


def encode(logits: Float[np.ndarray, "n c"], form: str, top_k: int | None = None) -> dict[str, np.ndarray]:
  """Encodes logits to the arrays of `fields`, on the host, so that the result does not depend on a device.

  Args:
    logits: float32 and finite; the forms float32 and float16 without top_k also allow -inf for excluded classes.
    form: one of FORMS.
    top_k: the number of largest logits to keep; of equal ones the lower class first.

  Raises:
    UserError: a logit is too large for float16.
  """
  kinds = fields(logits.shape[1], form, top_k)
  if top_k is not None:
    order = np.argsort(-logits, axis=1, kind="stable")
    values, rest = (np.take_along_axis(logits, part, axis=1) for part in (order[:, :top_k], order[:, top_k:]))
    arrays = {VALUES: _cast(values, kinds[VALUES]), CLASSES: order[:, :top_k], TAIL: _logsumexp(rest)}
  elif form == "int8":
    low, high = (end.astype(np.float64) for end in (logits.min(1), logits.max(1)))
    scale, offset = ((high - low) / (2 * STEPS)).astype(np.float32), ((high + low) / 2).astype(np.float32)
    steps = (logits - offset.astype(np.float64)[:, None]) / np.where(scale > 0, scale, 1)[:, None]
    arrays = {CODES: np.clip(np.rint(steps), -STEPS, STEPS), SCALE: scale, OFFSET: offset}
  else:
    arrays = {LOGITS: _cast(logits, kinds[LOGITS])}
  return {name: np.ascontiguousarray(array.astype(kinds[name].dtype)) for name, array in arrays.items()}


def _cast(values: np.ndarray, field: Field) -> np.ndarray:
  most = float(np.finfo(field.dtype).max)
  largest = np.abs(values).max(initial=0.0, where=values != -np.inf)
  if largest > most:
    raise UserError(f"a teacher's logit of {largest:g} is too large for float16; expected form 'float32'")
  return values


def _logsumexp(x: np.ndarray) -> np.ndarray:
  x = x.astype(np.float64)
  top = x.max(1)
  return top + np.log(np.exp(x - top[:, None]).sum(1))


def decode(entry: Mapping[str, Num[Array, "b *rest"]], classes: int) -> Float[Array, "b c"]:
  """Decodes stored arrays to float32 logits, inside jit, so that devices hold only the current batch decoded.

  Args:
    entry: a batch with the arrays of one form, each with the batch as its only leading axis; others are ignored.
    classes: C, a Python int.

  Raises:
    UserError: the batch holds no stored logits.
  """
  if LOGITS in entry:
    return entry[LOGITS].astype(jnp.float32)
  if CODES in entry:
    return entry[CODES].astype(jnp.float32) * entry[SCALE][:, None] + entry[OFFSET][:, None]
  if VALUES in entry:
    values, chosen = entry[VALUES].astype(jnp.float32), entry[CLASSES].astype(jnp.int32)
    even = entry[TAIL] - jnp.log(jnp.float32(classes - values.shape[1]))
    logits = jnp.broadcast_to(even[:, None], (len(values), classes))
    return jnp.put_along_axis(logits, chosen, values, axis=1, inplace=False)
  raise UserError(f"the batch holds no stored logits: expected {LOGITS!r}, {CODES!r} or {VALUES!r}")
