"""The type of every distillation loss: one dataclass, one signature, and declared properties.

A loss is pure. It is called as

    loss(student, teacher, batch, *, aux, aux_state, key, axis_name, class_mask, step)  ->  (per_example, state, logs)

with logits (batch, *positions, classes), or `Outputs` where it reads intermediate activations too. The result has one
number per example, (batch, *positions): every word of a text and every pixel of an image is an example. The caller
takes the mean over the valid examples of all devices. `kd.loss` makes a loss of a function of logits, `kd.on_pairs` of
a function of one pair of activations; any other is a `Loss` of `fn(student, teacher, context)`.

NaN and infinities of a valid example make its loss NaN or infinite, and that of the examples that it is compared with:
the whole batch for a `relational` loss. An invalid example is replaced by 0 before anything is computed: whatever it
holds, its loss and gradient are exactly 0, and it changes no other example.
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
  """The outputs of a network for a batch.

  Attributes:
    logits: the logits; a tree of them for a network with several outputs. For an ensemble, the logarithms of the mean
      probabilities at temperature 1.
    taps: intermediate activations by tensor name.
    members: for an ensemble whose probabilities are averaged, the logits of each member, (batch, members, classes) or
      (batch, members, *positions, classes); `teacher_at` computes the mean at any temperature.
  """

  logits: Any
  taps: Mapping[str, Array] = {}
  members: Array | None = None


class Context(NamedTuple):
  """The inputs of a loss beside the outputs of the two networks.

  Attributes:
    batch: with "label", "id" and, where some examples are padding, "valid", (batch,) bools.
    aux: the loss's trained parameters, initialised by its `init`.
    aux_state: the loss's state.
    key: the random key of this step.
    axis_name: the device axis, or None.
    class_mask: the valid classes, or None for all.
    step: the number of updates so far.
    loss: the loss's name in error messages.
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
  """The result of a loss.

  Attributes:
    per_example: (batch, *positions), one number per example.
    state: the new state; None leaves it unchanged.
    logs: further numbers per example, by name.
  """

  per_example: Array
  state: Any = None
  logs: Mapping[str, Array] = {}


class Taps(NamedTuple):
  """The activations that a loss reads, named as `graph.taps` names them (`Conv_1/kernel:out`).

  Attributes:
    student: tensor names of the student.
    teacher: tensor names of the teacher.
    shapes: the supported shapes; see `kd.reads`.
  """

  student: tuple[str, ...] = ()
  teacher: tuple[str, ...] = ()
  shapes: Shapes = ANYTHING


NO_TAPS = Taps()
InitFn = Callable[[Array, Outputs, Any, Any], tuple[Any, Any]]


@dataclass(frozen=True)
class Loss:
  """A loss and its declared properties.

  Attributes:
    name: the loss's name in error messages.
    fn: `fn(student, teacher, context) -> LossOut`. Activations are float32 or wider; the teacher's outputs are
      constants, and None where there is no teacher. Logits are passed unchecked, since a network may have several
      outputs: a loss on logits checks them with `kd.inputs.read`.
    needs_teacher: whether the loss compares with a teacher.
    relational: whether an example's loss depends on the other examples of its batch, by relations between examples or
      statistics of the batch. The result of such a loss changes with the size of the micro-batch.
    reads: the inputs beside the taps: "logits", keys of the batch such as "label" and "id", and the names that
      `kd.loss` lists.
    taps: the activations that the loss reads: maps (batch, height, width, channels), token sequences (batch, tokens,
      channels) or vectors (batch, channels).
    init_fn: `init_fn(key, student, teacher, teacher_variables) -> (aux, aux_state)`, from `Outputs` of shapes
      (`jax.ShapeDtypeStruct`): the initial parameters and state. None for a loss without them; see `init`.
    head: for a loss that trains a part of the deployed student: `head(aux, aux_state, teacher_variables, classes,
      chosen) -> parameters` of the layers that read the student's tap and replace the student's own classifier.
      `classes` is the student's number of classes, `chosen` their indices among the teacher's, () for all.
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
    """`init(key, student, teacher, teacher_variables=None)`: `init_fn` with the checks of a call; or None."""
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
    """Returns the loss per example of a batch; see the module's docstring.

    Raises:
      UserError: the outputs, the batch or a mask do not fit the loss.
    """
    if self.init_fn is not None and aux is None and aux_state is None:
      raise UserError(f"the loss {self.name!r} has parameters or state: call its init and give 'aux', 'aux_state'")
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
    """Checks the outputs, or their shapes; returns the batch size of the activations, or None without taps."""
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
  """Returns the logits of `Outputs`, or of logits alone."""
  return outputs.logits if isinstance(outputs, Outputs) else outputs


def _read(outputs: Outputs | Array, names: tuple[str, ...], valid: Array | None) -> Outputs:
  """Returns the outputs with the named taps only, float32 or wider, 0 in invalid examples."""

  def zero_invalid(x: Array) -> Array:
    x = widen(jnp.asarray(x))
    return x if valid is None else jnp.where(valid.reshape(-1, *(1,) * (x.ndim - 1)), x, 0.0)

  taps = {name: zero_invalid(outputs.taps[name]) for name in names}  # pyrefly: ignore
  return Outputs(logits_of(outputs), taps, getattr(outputs, "members", None))
