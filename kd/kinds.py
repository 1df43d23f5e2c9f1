"""The form of every distillation loss: one dataclass, one signature, and properties that are declared.

A loss is pure. It is called as

    loss(student, teacher, batch, *, aux, aux_state, key, axis_name, class_mask, step)  ->  (per_example, state, logs)

with logits (batch, *positions, classes), or `Outputs` where it reads intermediate activations too. The result has one
number per example, (batch, *positions): every word of a text and every place of an image is one. The caller takes the
mean over what counts in the batch of all devices. `kd.loss` makes a loss of a function of logits, `kd.on_pairs` of a
function of one pair of activations; any other is a `Loss` of `fn(student, teacher, context)`.

NaN and infinities of an example that counts make its number NaN or infinite, never a finite one; so they do to the
examples that it is compared with, all of the batch where a loss is `relational`. An example that does not count is 0
before anything is computed: whatever it holds, its number and gradient are exactly 0, and it reaches no other example.
"""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd import checks
from kd.inputs import widen
from kd.reads import ANYTHING, Shapes, channels_first, check
from leanax.core.errors import UserError


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


class Context(NamedTuple):
  """What a loss knows beside the outputs of the two networks.

  Attributes:
    batch: with "label", "id" and, where some examples are padding, "valid", (batch,) bools.
    aux: what the loss trains, as its `init` made it.
    aux_state: what it remembers.
    key: randomness of this step.
    axis_name: the device axis, or None.
    class_mask: the classes that count, or None for all.
    step: the number of updates so far.
    loss: how errors call the loss.
  """

  batch: Mapping[str, Any]
  aux: Any = None
  aux_state: Any = None
  key: Array | None = None
  axis_name: str | None = None
  class_mask: Array | None = None
  step: Array | int = 0
  loss: str = ""


class LossOut(NamedTuple):
  """What a loss gives.

  Attributes:
    per_example: (batch, *positions), one number per example.
    state: what it remembers after the batch; None leaves it as it was.
    logs: further numbers per example, by name.
  """

  per_example: Array
  state: Any = None
  logs: Mapping[str, Array] = {}


class Taps(NamedTuple):
  """The activations that a loss reads, named as `graph.taps` names them (`Conv_1/kernel:out`).

  Attributes:
    student: those of the student.
    teacher: those of the teacher.
    shapes: which shapes it is written for; see `kd.reads`.
  """

  student: tuple[str, ...] = ()
  teacher: tuple[str, ...] = ()
  shapes: Shapes = ANYTHING


NO_TAPS = Taps()
InitFn = Callable[[Array, Outputs, Any, Any], tuple[Any, Any]]


@dataclass(frozen=True)
class Loss:
  """A loss, and what it says of itself.

  Attributes:
    name: how errors call it.
    fn: `fn(student, teacher, context) -> LossOut`. Activations are float32 or wider; the teacher's outputs are
      constants, and None where there is no teacher. Logits are as they were given, for a network may have several
      outputs: `kd.inputs.read` checks those of a loss that reads them.
    needs_teacher: whether it compares with a teacher.
    relational: whether an example's number depends on the other examples of its batch. Relations between examples do
      that, and statistics of the batch: such a loss means another thing on a micro-batch.
    reads: what it reads beside its taps: "logits", keys of the batch such as "label" and "id", and other names that
      `kd.loss` lists.
    taps: the activations that it reads, of maps (batch, height, width, channels), token sequences (batch, tokens,
      channels) or vectors (batch, channels).
    init_fn: `init_fn(key, student, teacher, teacher_variables) -> (aux, aux_state)`, from `Outputs` of shapes
      (`jax.ShapeDtypeStruct`): what it trains and remembers at first. None for a loss without; see `init`.
    head: for a loss that trains what the student is deployed with: `head(aux, aux_state, teacher_variables, classes,
      chosen) -> parameters` of what reads the student's tap in place of the student's own classifier. `classes` is
      how many the student has, `chosen` which of the teacher's these are, () for all.
  """

  name: str
  fn: Callable[[Outputs, Any, Context], LossOut]
  _: KW_ONLY
  needs_teacher: bool = True
  relational: bool = False
  reads: tuple[str, ...] = ()
  taps: Taps = NO_TAPS
  init_fn: InitFn | None = None
  head: Callable[..., dict[str, Any]] | None = None

  def __post_init__(self):
    given = {"reads": self.reads, "taps.student": self.taps.student, "taps.teacher": self.taps.teacher}
    for key, names in given.items():
      if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(f"the loss {self.name!r}: {key} is {names!r}; expected names in a tuple, such as ('a',)")

  @property
  def init(self) -> Callable[..., tuple[Any, Any]] | None:
    """`init(key, student, teacher, teacher_variables=None)`: `init_fn`, which refuses what a call refuses; or None."""
    return None if self.init_fn is None else self._init

  def __call__(
    self,
    student: Outputs | Array,
    teacher: Outputs | Array | None = None,
    batch: Mapping[str, Any] | None = None,
    *,
    aux: Any = None,
    aux_state: Any = None,
    key: Array | None = None,
    axis_name: str | None = None,
    class_mask: Array | None = None,
    step: Array | int = 0,
  ) -> LossOut:
    """Returns the numbers of a batch; see the module's docstring.

    Raises:
      UserError: the outputs, the batch or a mask is not what the loss reads.
    """
    if self.init_fn is not None and aux is None and aux_state is None:
      raise UserError(
        f"the loss {self.name!r} trains or remembers something: call its init and give 'aux', 'aux_state'"
      )
    batch = checks.batch_of(self.name, batch)
    count = self._check(student, teacher)
    valid = None if count is None else checks.valid_of(self.name, batch, (count,))
    batch = batch if valid is None else {**batch, "valid": valid}
    outputs = _read(student, self.taps.student, valid)
    constants = None if teacher is None else jax.lax.stop_gradient(_read(teacher, self.taps.teacher, valid))
    context = Context(batch, aux, aux_state, key, axis_name, class_mask, step, self.name)
    out = self.fn(outputs, constants, context)
    if not isinstance(out, LossOut):
      raise UserError(
        f"the loss {self.name!r} returns a {type(out).__name__}; expected kd.LossOut(per_example, state, logs)"
      )
    for what, numbers in {"": out.per_example, **out.logs}.items():
      if count is not None and jnp.shape(numbers) != (count,):
        what = what and f" as its log {what!r}"
        raise UserError(
          f"the loss {self.name!r} gives an array of shape {jnp.shape(numbers)}{what}; expected one number per "
          f"example, ({count},)"
        )
    per_example = out.per_example if valid is None else jnp.where(valid, out.per_example, 0.0)
    return LossOut(per_example, aux_state if out.state is None else out.state, out.logs)

  def _init(self, key: Array, student: Outputs, teacher: Any, variables: Any = None) -> tuple[Any, Any]:
    assert self.init_fn is not None
    self._check(student, teacher)
    return self.init_fn(key, student, teacher, variables)

  def _check(self, student: Any, teacher: Any) -> int | None:
    """How many examples its activations have, or None; refuses outputs, or their shapes, that it cannot read."""
    if teacher is None and self.needs_teacher:
      raise UserError(
        f"the loss {self.name!r} needs a teacher: give a teacher stage or cached 'teacher_logits' in the batch"
      )
    found = {}
    for network, outputs in {"student": student, **({} if teacher is None else {"teacher": teacher})}.items():
      taps = outputs.taps if isinstance(outputs, Outputs) else {}
      for name in getattr(self.taps, network):
        where = f"the loss {self.name!r} reads {name!r} of the {network}"
        if name not in taps:
          raise UserError(f"{where}, whose outputs have no such tap")
        check(where, taps[name], self.taps.shapes)
        found[f"{name!r} of the {network}"] = taps[name].shape
    for where, shape in found.items():
      first, like = next(iter(found.items()))
      if shape[0] != like[0]:
        raise UserError(
          f"the loss {self.name!r} reads {first}, of shape {tuple(like)}, and {where}, of shape {tuple(shape)}; "
          "expected one batch, the first axis of both"
        )
    odd = channels_first(found) if self.taps.shapes.channels else None
    if odd is not None:
      raise UserError(
        f"the loss {self.name!r} reads {odd}, of shape {tuple(found[odd])}, where the channels seem to come first; "
        f"expected {self.taps.shapes.words}"
      )
    return next(iter(found.values()))[0] if found else None


def logits_of(outputs: Outputs | Array) -> Array:
  """The logits, whichever way a network's outputs are given."""
  return outputs.logits if isinstance(outputs, Outputs) else outputs


def _read(outputs: Outputs | Array, names: tuple[str, ...], valid: Array | None) -> Outputs:
  """The outputs with the named taps alone, float32 or wider, 0 in the examples that do not count."""

  def counting(x: Array) -> Array:
    x = widen(jnp.asarray(x))
    return x if valid is None else jnp.where(valid.reshape(-1, *(1,) * (x.ndim - 1)), x, 0.0)

  taps = {name: counting(outputs.taps[name]) for name in names}  # pyrefly: ignore
  return Outputs(logits_of(outputs), taps, getattr(outputs, "members", None))
