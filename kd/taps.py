"""Losses that read activations, train parameters of their own or remember: `TapLoss`, and how most of them are made.

Taps are named as `graph.taps` names them (`Conv_1/kernel:out`), one or several of each network. Maps are
(batch, height, width, channels), token sequences (batch, tokens, channels), vectors (batch, channels).

NaN and infinities of an example that counts make its number NaN or infinite, never a finite one; so they do to the
examples that it is compared with, all of the batch where a loss is `relational`. An example that does not count is 0
before anything is computed: whatever it holds, its number and gradient are exactly 0, and it reaches no other example.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd import checks
from kd.base import Outputs, logits_of
from kd.inputs import widen
from kd.reads import ANYTHING, Reads, channels_first, check
from leanax.core.errors import UserError

Names = str | Sequence[str]


class About(NamedTuple):
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


Init = Callable[[Array, Outputs, Outputs, Any], tuple[Any, Any]]


@dataclass(frozen=True)
class TapLoss:
  """A loss that says what it reads and what it trains; it is called like every loss.

  Attributes:
    name: how errors call it.
    fn: `fn(student, teacher, about) -> (per_example, aux_state, logs)`. Activations are float32 or wider; the teacher's
      outputs are constants. `teacher` is None where there is none and none is needed. Logits are as they were given,
      for a network may have several outputs: `kd.inputs.read` checks those of a loss that reads them.
    student: the taps that it reads of the student.
    teacher: those of the teacher.
    init: `init(key, student, teacher, teacher_variables) -> (aux, aux_state)`, from `Outputs` of shapes
      (`jax.ShapeDtypeStruct`); None for a loss without. As an attribute it refuses what a call refuses.
    needs_teacher: whether it cannot do without one.
    relational: whether an example's number depends on the other examples of its batch; see `kd.relational`.
    head: for a loss that trains what the student is deployed with: `head(aux, aux_state, teacher_variables, classes,
      chosen) -> parameters` of what reads the student's tap in place of the student's own classifier. `classes` is
      how many the student has, `chosen` which of the teacher's these are, () for all.
    reads: the shapes of its taps; see `kd.reads`.
  """

  name: str
  fn: Callable[[Outputs, Any, About], tuple[Array, Any, dict[str, Array]]]
  student: tuple[str, ...] = ()
  teacher: tuple[str, ...] = ()
  init: Init | None = None
  needs_teacher: bool = True
  relational: bool = False
  head: Callable[..., dict[str, Any]] | None = None
  reads: Reads = ANYTHING

  def __post_init__(self):
    plain = getattr(self.init, "plain", self.init)  # of a loss that `dataclasses.replace` copies
    if plain is None:
      return

    def init(key: Array, student: Outputs, teacher: Any, variables: Any = None) -> tuple[Any, Any]:
      self._check(student, teacher)
      return plain(key, student, teacher, variables)

    init.plain = plain  # pyrefly: ignore
    object.__setattr__(self, "init", init)

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
  ) -> tuple[Array, Any, dict[str, Array]]:
    if self.init is not None and aux is None and aux_state is None:
      raise UserError(
        f"the loss {self.name!r} trains or remembers something: call its init and give 'aux', 'aux_state'"
      )
    batch = checks.batch_of(self.name, batch)
    count = self._check(student, teacher)
    valid = None if count is None else checks.valid_of(self.name, batch, (count,))
    batch = batch if valid is None else {**batch, "valid": valid}
    read = partial(self._read, valid=valid)
    mine = read(student, "student")
    its = None if teacher is None else jax.lax.stop_gradient(read(teacher, "teacher"))
    about = About(batch, aux, aux_state, key, axis_name, class_mask, step, self.name)
    per_example, after, logs = self.fn(mine, its, about)
    for what, numbers in {"": per_example, **logs}.items():
      if count is not None and jnp.shape(numbers) != (count,):
        what = what and f" as its log {what!r}"
        raise UserError(
          f"the loss {self.name!r} gives an array of shape {jnp.shape(numbers)}{what}; expected one number per "
          f"example, ({count},)"
        )
    return per_example if valid is None else jnp.where(valid, per_example, 0.0), after, logs

  def _check(self, student: Any, teacher: Any) -> int | None:
    """How many examples its activations have, or None; refuses outputs, or their shapes, that it cannot read."""
    if teacher is None and self.needs_teacher:
      raise UserError(
        f"the loss {self.name!r} needs a teacher: give a teacher stage or cached 'teacher_logits' in the batch"
      )
    found = {}
    for whose, outputs in {"student": student, **({} if teacher is None else {"teacher": teacher})}.items():
      taps = outputs.taps if isinstance(outputs, Outputs) else {}
      for name in getattr(self, whose):
        where = f"the loss {self.name!r} reads {name!r} of the {whose}"
        if name not in taps:
          raise UserError(f"{where}, whose outputs have no such tap")
        check(where, taps[name], self.reads)
        found[f"{name!r} of the {whose}"] = taps[name].shape
    for where, shape in found.items():
      first, like = next(iter(found.items()))
      if shape[0] != like[0]:
        raise UserError(
          f"the loss {self.name!r} reads {first}, of shape {tuple(like)}, and {where}, of shape {tuple(shape)}; "
          "expected one batch, the first axis of both"
        )
    odd = channels_first(found) if self.reads.channels else None
    if odd is not None:
      raise UserError(
        f"the loss {self.name!r} reads {odd}, of shape {tuple(found[odd])}, where the channels seem to come first; "
        f"expected {self.reads.words}"
      )
    return next(iter(found.values()))[0] if found else None

  def _read(self, outputs: Outputs | Array, whose: str, valid: Array | None) -> Outputs:
    def counted(x: Array) -> Array:
      x = widen(jnp.asarray(x))
      return x if valid is None else jnp.where(valid.reshape(-1, *(1,) * (x.ndim - 1)), x, 0.0)

    taps = {name: counted(outputs.taps[name]) for name in getattr(self, whose)}  # pyrefly: ignore
    return Outputs(logits_of(outputs), taps, getattr(outputs, "members", None))


def named(loss: str, key: str, names: Names) -> tuple[str, ...]:
  """Names as a tuple.

  Raises:
    UserError: names the loss and the key: they are no text.
  """
  found = tuple(names) if isinstance(names, Sequence) and not isinstance(names, str) else (names,)
  if not all(isinstance(name, str) for name in found):
    raise UserError(f"{loss}: {key} is {names!r}; expected a name such as 'Conv_1/kernel:out', or several")
  return found


def paired(name: str, student: Names, teacher: Names) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Tap names of both networks as tuples of one length.

  Raises:
    UserError: the numbers of taps differ, or there are none.
  """
  mine, its = named(name, "student", student), named(name, "teacher", teacher)
  if len(mine) != len(its) or not mine:
    raise UserError(f"{name}: {len(mine)} taps of the student and {len(its)} of the teacher; expected pairs")
  return mine, its


def on_pairs(
  name: str,
  f: Callable[[Array, Array, Any, About], Array],
  student: Names,
  teacher: Names,
  init: Callable[[Array, Any, Any], Any] | None = None,
  *,
  relational: bool = False,
  reads: Reads = ANYTHING,
) -> TapLoss:
  """A loss on pairs of activations, summed over the pairs.

  Args:
    name: how errors call it.
    f: `f(student, teacher, aux, about) -> (batch,)` of one pair; `aux` is that of the pair.
    student: taps of the student.
    teacher: as many taps of the teacher.
    init: `init(key, student_shape, teacher_shape) -> aux` of one pair; None for a loss that trains nothing.
    relational: whether an example's number depends on the other examples of its batch.
    reads: the shapes of the activations; see `kd.reads`.

  Raises:
    UserError: the numbers of taps differ, or there are none.
  """
  mine, its = paired(name, student, teacher)

  def fn(s: Outputs, t: Outputs, about: About) -> tuple[Array, Any, dict[str, Array]]:
    if init is not None and (not isinstance(about.aux, Sequence) or len(about.aux) != len(mine)):
      raise UserError(
        f"the loss {name!r} trains a part for each of {len(mine)} pairs of taps; expected as 'aux' what its init makes"
      )
    parts = [
      f(s.taps[a], t.taps[b], None if init is None else about.aux[index], about)
      for index, (a, b) in enumerate(zip(mine, its, strict=True))
    ]
    return sum(parts[1:], parts[0]), about.aux_state, {}

  def start(key: Array, s: Outputs, t: Outputs, variables: Any) -> tuple[Any, Any]:
    del variables
    assert init is not None
    keys = jax.random.split(key, len(mine))
    return [init(k, s.taps[a], t.taps[b]) for k, a, b in zip(keys, mine, its, strict=True)], None

  return TapLoss(name, fn, mine, its, None if init is None else start, relational=relational, reads=reads)
