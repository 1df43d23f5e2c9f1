"""Losses on logits: `loss` makes a `kd.Loss` of a plain function, and the arithmetic that these losses share.

Such a function is `f(student_logits, teacher_logits, ...) -> (rows,)` of logits (rows, classes); a row is an example,
or one position of an example.

All probabilities are kept as logarithms, and the arithmetic is in float32 or wider, so a logit gap of 10,000 is finite
in any input dtype. Invalid values are never ignored:

- NaN in the logits of either network makes the loss of a valid example NaN. So does +inf in a softmax or a sigmoid; a
  distance is infinite there.
- A class to which all networks give a logit of -inf is excluded from the loss. Where only one network excludes it, the
  equation applies as written: KL(p || q) is finite where p is 0 and infinite where only q is 0.
- Masks, labels and logits of other shapes or types than a loss reads are refused (`kd.inputs`, `kd.checks`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kd import checks
from kd.inputs import Inputs, read, widen
from kd.kinds import Context, Loss, LossOut, Outputs, logits_of
from leanax.core.errors import UserError

Logits = Float[Array, "rows classes"]
PerExample = Float[Array, " rows"]
ClassMask = Bool[Array, "#rows classes"] | Bool[Array, " classes"]
Schedule = float | Callable[[Array], Array]
TeacherAt = Callable[[Any], Array]


def loss(
  f: Callable[..., Array],
  name: str = "",
  *,
  reads: Sequence[str] = (),
  needs_teacher: bool = True,
  relational: bool = False,
  classes: int = 2,
  temperature: Schedule = 1.0,
  mean: str = "softmax",
) -> Loss:
  """Makes a loss of a function of logits; the teacher receives exactly zero gradient.

  Args:
    f: `f(student_logits, teacher_logits, **reads) -> (rows,)` of logits (rows, classes), float32 or wider. A row is an
      example, or one position of an example. `teacher_logits` is None where there is no teacher.
    name: the loss's name in error messages; the function's name by default.
    reads: the keyword arguments that `f` takes: "label" (`kd.labels.Labels`; the batch must have labels),
      "class_mask", "valid" ((rows,) bools, None for all), "step", "axis_name", "batch", unchanged, and "teacher_at",
      a function from a temperature to the teacher's logits at it, for a loss with several temperatures. Any other name
      is a key of the batch, floats of the logits' shape.
    needs_teacher: whether the loss compares with a teacher.
    relational: whether an example's loss depends on the other examples of its batch.
    classes: the smallest valid number of classes: 2 for softmaxes, 1 for independent outputs.
    temperature: of the teacher's softmax in `f`; the mean of an ensemble depends on it.
    mean: which values of an ensemble are averaged; see `teacher_at`.

  Raises:
    UserError: `f` takes other arguments.
  """
  name = name or getattr(f, "__name__", "loss")
  reads = tuple(reads) if not isinstance(reads, str) else (reads,)
  _check_arguments(name, f, reads)

  def fn(student: Outputs, teacher: Outputs | None, context: Context) -> LossOut:
    if context.class_mask is not None and "class_mask" not in reads:
      raise UserError(f"the loss {name!r} does not support masked classes: it does not read 'class_mask'")

    teacher = teacher if needs_teacher else None
    members = None if teacher is None else teacher.members
    if members is not None and classes == 1 and mean == "softmax" and getattr(members, "shape", ())[-1:] == (1,):
      raise UserError(
        f"the loss {name!r} reads the mean probabilities of an ensemble's classes, and of one class they are always 1; "
        "expected squared_error or huber, which read the mean of the outputs, or the mean of the logits as a teacher"
      )

    def read_at(t: Any) -> Inputs:
      logits = teacher_at(teacher, t, context.class_mask, mean, name) if teacher is not None else None
      return read(name, student.logits, logits, context.batch, context.class_mask, classes)

    inputs = read_at(at(temperature, context.step))
    if "batch" in reads and len(inputs.lead) > 1:
      raise UserError(
        f"the loss {name!r} reads the batch itself, so its logits are (batch, classes), and not of more axes; "
        f"got {(*inputs.lead, inputs.student.shape[-1])}"
      )
    labels = inputs.labels() if "label" in reads else None
    known = {
      "label": labels,
      "class_mask": inputs.class_mask,
      "valid": inputs.valid,
      "step": context.step,
      "axis_name": context.axis_name,
      "batch": inputs.batch,
      "teacher_at": lambda t: read_at(t).teacher,
    }
    kwargs = {key: known[key] if key in known else inputs.target(key) for key in reads}
    per_row = f(inputs.student, inputs.teacher, **kwargs)
    return LossOut(inputs.per_example(per_row, None if labels is None else labels.wrong))

  return Loss(name, fn, needs_teacher=needs_teacher, relational=relational, reads=("logits", *reads))


def _check_arguments(name: str, f: Callable[..., Array], reads: tuple[str, ...]) -> None:
  expected = ", ".join(("student_logits", "teacher_logits", *(f"{key}=" for key in reads)))
  where = f"the function of the loss {name!r} is called as f({expected}) by its 'reads'"
  checks.arguments(where, f, None, None, **dict.fromkeys(reads))


def at(value: Schedule, step: Array | int) -> Any:
  """Returns a number, or the value of a schedule at a step."""
  return value(jnp.asarray(step)) if callable(value) else value


def teacher_at(
  outputs: Outputs | Array,
  temperature: Any,
  class_mask: Array | None = None,
  mean: str = "softmax",
  loss: str = "of an ensemble",
) -> Array:
  """Returns the logits whose softmax at a temperature is the teacher's.

  For an ensemble these are T log mean_m softmax(z_m / T): Hinton, Vinyals, Dean (arXiv:1503.02531), section 2, average
  the members' softened probabilities. For one network they are its logits, at any temperature.

  Args:
    outputs: of the teacher.
    temperature: T > 0.
    class_mask: the valid classes, over which each member's probabilities add up to 1.
    mean: the average over the members: "softmax" of the probabilities over the classes, "sigmoid" of the probability
      of each output; "outputs" of the outputs themselves, for regression.
    loss: the loss's name in error messages.

  Returns:
    (batch, *positions, classes).

  Raises:
    UserError: the members are not logits (batch, members, *positions, classes), or `class_mask` is invalid.
  """
  if not isinstance(outputs, Outputs) or outputs.members is None:
    return logits_of(outputs)
  z = _members(loss, outputs.members)
  mask = checks.class_mask_of(loss, class_mask, (z.shape[0], *z.shape[2:]))
  if mean == "outputs":
    return jnp.mean(z, axis=1)
  count = jnp.log(jnp.asarray(z.shape[1], z.dtype))
  if mean == "sigmoid":
    yes, no = (jax.nn.logsumexp(jax.nn.log_sigmoid(x / temperature), axis=1) - count for x in (z, -z))
    return temperature * (yes - no)
  if mask is not None and mask.ndim > 1:  # the axis of the members is between the batch and its positions
    mask = mask.reshape(*mask.shape[:-1], *(1,) * (z.ndim - 1 - mask.ndim), mask.shape[-1])[:, None]
  return temperature * (jax.nn.logsumexp(log_softmax(z / temperature, mask), axis=1) - count)


def _members(loss: str, given: Any) -> Array:
  """Returns the logits of an ensemble's members, float32 or wider."""
  if not hasattr(given, "dtype") or not jnp.issubdtype(given.dtype, jnp.floating) or given.ndim < 3:
    shown = checks.what(given) if hasattr(given, "dtype") else type(given).__name__
    raise UserError(
      f"the loss {loss!r} reads an ensemble's members, (batch, members, *positions, classes) floats; got {shown}"
    )
  return widen(jnp.asarray(given))


def log_softmax(logits: Logits, class_mask: ClassMask | None = None) -> Logits:
  """Returns the log-softmax over the valid classes; the others get 0, which adds nothing to a divergence.

  A masked class may hold any value, infinities too. If a valid class holds NaN or +inf, or all hold -inf, the whole row
  is NaN.
  """
  logits = widen(logits)
  if class_mask is None:
    return jax.nn.log_softmax(logits, axis=-1)
  # Not -inf: its differences are NaN, and so is the gradient of what is selected away.
  kept = jnp.where(class_mask, logits, jnp.finfo(logits.dtype).min / 2)
  out = jnp.where(class_mask, jax.nn.log_softmax(kept, axis=-1), 0.0)
  remaining = jnp.any(class_mask & (logits > -jnp.inf), axis=-1, keepdims=True)
  return jnp.where(class_mask & ~remaining, jnp.nan, out)


def kl(log_p: Logits, log_q: Logits) -> PerExample:
  """Returns sum_c p_c (log p_c - log q_c), from logarithms as of `log_softmax`; a class with p_c = 0 adds nothing."""
  p = jnp.exp(log_p)
  used = p != 0  # a class that the teacher excludes (logit -inf) would give 0 * inf; NaN stays NaN
  return jnp.sum(jnp.where(used, p, 0.0) * (jnp.where(used, log_p, 0.0) - jnp.where(used, log_q, 0.0)), axis=-1)


def cross_entropy(probabilities: Logits, log_q: Logits) -> PerExample:
  """Returns -sum_c p_c log q_c, where classes with p_c = 0 add nothing even if log q_c is -inf."""
  used = probabilities != 0
  return -jnp.sum(jnp.where(used, probabilities, 0.0) * jnp.where(used, log_q, 0.0), axis=-1)


def pick(log_q: Logits, index: Int[Array, " rows"]) -> PerExample:
  """Returns the indexed entry of each row."""
  return jnp.take_along_axis(log_q, index[:, None], axis=-1)[:, 0]
