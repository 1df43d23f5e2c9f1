"""The form of every distillation loss, and the arithmetic on logits that they share.

A loss is a pure function

    loss(student, teacher, batch, *, aux, aux_state, key, axis_name, class_mask, step) -> (per_example, aux_state, logs)

`student` and `teacher` are logits (batch, *positions, classes), or `Outputs` where a loss reads intermediate
activations too. `aux` holds what the loss trains (a regressor), `aux_state` what it remembers (a memory bank),
`class_mask` the classes that count, `batch["valid"]` the examples that count. The result is one number an example,
(batch, *positions): every word of a text and every place of an image is one. Whoever calls takes the mean over what
counts in the batch of all devices. A loss on logits alone is written `f(student_logits, teacher_logits)` of rows and
lifted; one that reads activations is made by `kd.taps`.

All probabilities are kept as logarithms: a logit gap of 10,000 is finite in any dtype, for the arithmetic is done in
float32 or wider. Three things are never passed over in silence:

- NaN in either network's logits of an example that counts: its number is NaN. So it is at +inf in a softmax or a
  sigmoid; a distance is infinite there.
- A class that all networks exclude by a logit of -inf: it is as if it were not there. Where one network excludes it
  alone, the loss is what its equation says: KL(p || q) is finite where p is 0 and infinite where only q is.
- Masks, labels and logits of other shapes or types than a loss reads: they are refused (`kd.inputs`, `kd.checks`).
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kd import checks
from kd.inputs import Inputs, read, widen
from leanax.core.errors import UserError

Logits = Float[Array, "rows classes"]
PerExample = Float[Array, " rows"]
ClassMask = Bool[Array, "#rows classes"] | Bool[Array, " classes"]


class Outputs(NamedTuple):
  """What a network gave for a batch.

  Attributes:
    logits: its logits; of a network with several outputs their tree. Of an ensemble the logarithms of the mean
      probabilities at temperature 1.
    taps: intermediate activations by tensor name.
    members: of an ensemble whose probabilities are averaged, (batch, members, classes) or (batch, members, *positions,
      classes): the logits of each, from which `teacher_at` has the mean at any temperature.
  """

  logits: Any
  taps: Mapping[str, Array] = {}
  members: Array | None = None


def teacher_at(
  outputs: Outputs | Array,
  temperature: Any,
  class_mask: Array | None = None,
  mean: str = "softmax",
  loss: str = "of an ensemble",
) -> Array:
  """Logits whose softmax at a temperature is what a teacher says at it: those of an ensemble depend on it.

  Of an ensemble it is T log mean_m softmax(z_m / T): Hinton, Vinyals, Dean (arXiv:1503.02531), section 2, average the
  members' softened probabilities. Of one network it is its logits.

  Args:
    outputs: a teacher's.
    temperature: T > 0.
    class_mask: the classes that count, among which each member's probabilities add up to 1.
    mean: of which probabilities: "softmax" over the classes, or "sigmoid" of each output, as logits of it; "outputs"
      for outputs that are numbers and no logits, whose mean it is at any temperature.
    loss: how errors call the loss that reads it.

  Returns:
    (batch, *positions, classes).

  Raises:
    UserError: the members are no such logits, or `class_mask` is none.
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
  if mask is not None and mask.ndim > 1:  # between the batch and its positions stands the axis of the members
    mask = mask.reshape(*mask.shape[:-1], *(1,) * (z.ndim - 1 - mask.ndim), mask.shape[-1])[:, None]
  return temperature * (jax.nn.logsumexp(log_softmax(z / temperature, mask), axis=1) - count)


@runtime_checkable
class Loss(Protocol):
  """The full signature of a loss; see the module's docstring."""

  def __call__(
    self,
    student: Outputs | Array,
    teacher: Outputs | Array | None,
    batch: Mapping[str, Any] | None = None,
    *,
    aux: Any = None,
    aux_state: Any = None,
    key: Array | None = None,
    axis_name: str | None = None,
    class_mask: Array | None = None,
    step: Array | int = 0,
  ) -> tuple[Array, Any, dict[str, Array]]: ...


def logits_of(outputs: Outputs | Array) -> Array:
  """The logits, whichever way a network's outputs are given."""
  return outputs.logits if isinstance(outputs, Outputs) else outputs


def teacher_logits(
  teacher: Outputs | Array | None,
  loss: str,
  temperature: Any = 1.0,
  class_mask: Array | None = None,
  mean: str = "softmax",
) -> Array:
  """The teacher's logits as constants, of an ensemble those at a temperature: see `teacher_at`.

  Raises:
    UserError: there is no teacher.
  """
  if teacher is None:
    raise UserError(f"the loss {loss!r} needs a teacher: give a teacher stage or cached 'teacher_logits' in the batch")
  return jax.lax.stop_gradient(teacher_at(teacher, temperature, class_mask, mean, loss))


def _members(loss: str, given: Any) -> Array:
  """The logits of an ensemble's members, float32 or wider."""
  if not hasattr(given, "dtype") or not jnp.issubdtype(given.dtype, jnp.floating) or given.ndim < 3:
    shown = checks.what(given) if hasattr(given, "dtype") else type(given).__name__
    raise UserError(
      f"the loss {loss!r} reads an ensemble's members, (batch, members, *positions, classes) floats; got {shown}"
    )
  return widen(jnp.asarray(given))


def lift(
  f: Callable[..., Array],
  name: str = "",
  relational: bool = False,
  needs_teacher: bool = True,
  classes: int = 2,
  temperature: "Schedule" = 1.0,
  mean: str = "softmax",
) -> Loss:
  """Gives a loss on logits alone the full signature; the teacher receives exactly zero gradient.

  Args:
    f: `f(student_logits, teacher_logits) -> (rows,)` of logits (rows, classes), float32 or wider, with a third argument
      `class_mask` if it knows masked classes. A row is an example, or a position of one. The teacher's are None without
      one. Keyword arguments are given where `f` has them: `labels` (`kd.labels.Labels`: the loss needs labels),
      `inputs` (`kd.inputs.Inputs`), `step`, `axis_name`, `batch`, as it was given, and `teacher_at`, from a
      temperature to the teacher's logits at it, for a loss that reads them at several.
    name: how errors call it.
    relational: whether an example's number depends on the other examples of its batch.
    needs_teacher: whether it compares with a teacher.
    classes: the least number of classes that mean something, 2 for softmaxes; 1 where every output stands alone.
    temperature: at which `f` takes the teacher's softmax: the mean of an ensemble depends on it.
    mean: what of an ensemble is averaged, as of `teacher_at`.

  Raises:
    UserError: `f` has other arguments; those that have a default keep it.
  """
  name = name or getattr(f, "__name__", "loss")
  knows_mask, reads = _read_by(f, name)

  def loss(
    student, teacher=None, batch=None, *, aux=None, aux_state=None, key=None, axis_name=None, class_mask=None, step=0
  ):
    del aux, key
    if class_mask is not None and not knows_mask:
      raise UserError(f"the loss {name!r} does not know masked classes: it has no argument 'class_mask'")

    members = teacher.members if isinstance(teacher, Outputs) and needs_teacher else None
    if members is not None and classes == 1 and mean == "softmax" and getattr(members, "shape", ())[-1:] == (1,):
      raise UserError(
        f"the loss {name!r} reads the mean probabilities of an ensemble's classes, and of one class they are always 1; "
        "expected squared_error or huber, which read the mean of the outputs, or the mean of the logits as a teacher"
      )

    def read_at(t: Any) -> Inputs:
      its = teacher_logits(teacher, name, t, class_mask, mean) if needs_teacher else None
      return read(name, logits_of(student), its, batch, class_mask, classes)

    inputs = read_at(at(temperature, step))
    if "batch" in reads and len(inputs.lead) > 1:
      raise UserError(
        f"the loss {name!r} reads the batch itself, so its logits are (batch, classes), and not of more axes; "
        f"got {(*inputs.lead, inputs.student.shape[-1])}"
      )
    labels = inputs.labels() if "labels" in reads else None
    known = {"labels": labels, "inputs": inputs, "batch": inputs.batch, "step": step, "axis_name": axis_name}
    known["teacher_at"] = lambda t: read_at(t).teacher
    masks = (inputs.class_mask,) if knows_mask else ()
    per_row = f(inputs.student, inputs.teacher, *masks, **{key: known[key] for key in reads})
    return inputs.numbers(per_row, None if labels is None else labels.wrong), aux_state, {}

  loss.__name__ = name
  loss.relational = relational  # pyrefly: ignore
  loss.needs_teacher = needs_teacher  # pyrefly: ignore
  return loss


KEYWORDS = ("labels", "inputs", "step", "axis_name", "batch", "teacher_at")  # what a lifted function may ask for


def _read_by(f: Any, name: str) -> tuple[bool, list[str]]:
  """Whether a function that is lifted has an argument for masked classes, and which keywords it is given."""
  parameters = list(inspect.signature(f).parameters.values()) if callable(f) else []
  plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
  needed = [p for p in plain if p.default is p.empty]
  keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
  knows_mask = len(needed) > 2 or (len(plain) > 2 and plain[2].name == "class_mask")
  strange = [p.name for p in keywords if p.name not in KEYWORDS and p.default is p.empty]
  some = any(p.kind is p.VAR_POSITIONAL for p in parameters)
  if strange or len(needed) > 3 or (len(plain) < 2 and not some):
    raise UserError(
      f"kd.lift: {name!r} is {f!r}{' with ' * bool(strange)}{', '.join(strange)}; expected f(student_logits, "
      f"teacher_logits), perhaps with class_mask, and of keywords {', '.join(KEYWORDS)}"
    )
  return knows_mask, [p.name for p in keywords if p.name in KEYWORDS]


Schedule = float | Callable[[Array], Array]
TeacherAt = Callable[[Any], Array]


def at(value: Schedule, step: Array | int) -> Any:
  """A number, or a schedule's number at a step."""
  return value(jnp.asarray(step)) if callable(value) else value


def needs_teacher(loss: Loss) -> bool:
  """Whether a loss compares with a teacher; what does not say so does."""
  return getattr(loss, "needs_teacher", True)


def relational(loss: Loss) -> bool:
  """Whether an example's number depends on the other examples of its batch; what does not say so does not.

  Relations between examples do that, and statistics of the batch: such a loss means another thing on a micro-batch.
  """
  return getattr(loss, "relational", False)


def log_softmax(logits: Logits, class_mask: ClassMask | None = None) -> Logits:
  """Logarithms of the softmax over the classes that count; the others get 0, and so add nothing to a divergence.

  A class that does not count may hold anything, infinities too. Where a class that does holds NaN or +inf, or all hold
  -inf, all logarithms of the row are NaN.
  """
  logits = widen(logits)
  if class_mask is None:
    return jax.nn.log_softmax(logits, axis=-1)
  # Not -inf: its differences are NaN, and so is the gradient of what is selected away.
  kept = jnp.where(class_mask, logits, jnp.finfo(logits.dtype).min / 2)
  out = jnp.where(class_mask, jax.nn.log_softmax(kept, axis=-1), 0.0)
  left = jnp.any(class_mask & (logits > -jnp.inf), axis=-1, keepdims=True)
  return jnp.where(class_mask & ~left, jnp.nan, out)


def kl(log_p: Logits, log_q: Logits) -> PerExample:
  """sum_c p_c (log p_c - log q_c) of logarithms as `log_softmax` gives them; a class with p_c = 0 adds nothing."""
  p = jnp.exp(log_p)
  used = p != 0  # a class that the teacher excludes (logit -inf) would give 0 * inf; what is NaN stays
  return jnp.sum(jnp.where(used, p, 0.0) * (jnp.where(used, log_p, 0.0) - jnp.where(used, log_q, 0.0)), axis=-1)


def cross_entropy(probabilities: Logits, log_q: Logits) -> PerExample:
  """-sum_c p_c log q_c, where classes with p_c = 0 add nothing even if log q_c is -inf."""
  used = probabilities != 0
  return -jnp.sum(jnp.where(used, probabilities, 0.0) * jnp.where(used, log_q, 0.0), axis=-1)


def pick(log_q: Logits, index: Int[Array, " rows"]) -> PerExample:
  """The entry of each row that its index names."""
  return jnp.take_along_axis(log_q, index[:, None], axis=-1)[:, 0]
