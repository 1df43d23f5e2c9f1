"""Losses that read activations, train parameters of their own or remember: `TapLoss`, and how most of them are made.

Taps are named as `graph.taps` names them (`Conv_1/kernel:out`), one or several of each network. Maps are
(batch, height, width, channels), token sequences (batch, tokens, channels), vectors (batch, channels).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from core.errors import UserError
from kd.base import Outputs, logits_of, widen

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
  """

  batch: Mapping[str, Any]
  aux: Any = None
  aux_state: Any = None
  key: Array | None = None
  axis_name: str | None = None
  class_mask: Array | None = None
  step: Array | int = 0


Init = Callable[[Array, Outputs, Outputs, Any], tuple[Any, Any]]


@dataclass(frozen=True)
class TapLoss:
  """A loss that says what it reads and what it trains; it is called like every loss.

  Attributes:
    name: how errors call it.
    fn: `fn(student, teacher, about) -> (per_example, aux_state, logs)`. Activations and logits are float32 or wider;
      those of the teacher are constants. `teacher` is None where there is none and none is needed.
    student: the taps that it reads of the student.
    teacher: those of the teacher.
    init: `init(key, student, teacher, teacher_variables) -> (aux, aux_state)`, from `Outputs` of shapes
      (`jax.ShapeDtypeStruct`); None for a loss without.
    needs_teacher: whether it cannot do without one.
    relational: whether an example's number depends on the other examples of its batch; see `kd.relational`.
    head: for a loss that trains what the student is deployed with: `head(aux, aux_state, teacher_variables, classes,
      chosen) -> parameters` of what reads the student's tap in place of the student's own classifier. `classes` is
      how many the student has, `chosen` which of the teacher's these are, () for all.
  """

  name: str
  fn: Callable[[Outputs, Any, About], tuple[Array, Any, dict[str, Array]]]
  student: tuple[str, ...] = ()
  teacher: tuple[str, ...] = ()
  init: Init | None = None
  needs_teacher: bool = True
  relational: bool = False
  head: Callable[..., dict[str, Any]] | None = None

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
    if teacher is None and self.needs_teacher:
      raise UserError(
        f"the loss {self.name!r} needs a teacher: give a teacher stage or cached 'teacher_logits' in the batch"
      )
    if self.init is not None and aux is None and aux_state is None:
      raise UserError(
        f"the loss {self.name!r} trains or remembers something: call its init and give 'aux', 'aux_state'"
      )
    mine = self._read(student, self.student, "student")
    its = None if teacher is None else jax.lax.stop_gradient(self._read(teacher, self.teacher, "teacher"))
    return self.fn(mine, its, About(batch or {}, aux, aux_state, key, axis_name, class_mask, step))

  def _read(self, outputs: Outputs | Array, names: tuple[str, ...], whose: str) -> Outputs:
    taps = outputs.taps if isinstance(outputs, Outputs) else {}
    for name in names:
      if name not in taps:
        raise UserError(f"the loss {self.name!r} reads {name!r} of the {whose}, whose outputs have no such tap")
    members = getattr(outputs, "members", None)
    return Outputs(jax.tree.map(widen, logits_of(outputs)), {name: widen(taps[name]) for name in names}, members)


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
) -> TapLoss:
  """A loss on pairs of activations, summed over the pairs.

  Args:
    name: how errors call it.
    f: `f(student, teacher, aux, about) -> (batch,)` of one pair; `aux` is that of the pair.
    student: taps of the student.
    teacher: as many taps of the teacher.
    init: `init(key, student_shape, teacher_shape) -> aux` of one pair; None for a loss that trains nothing.
    relational: whether an example's number depends on the other examples of its batch.

  Raises:
    UserError: the numbers of taps differ, or there are none.
  """
  mine, its = paired(name, student, teacher)

  def fn(s: Outputs, t: Outputs, about: About) -> tuple[Array, Any, dict[str, Array]]:
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

  return TapLoss(name, fn, mine, its, None if init is None else start, relational=relational)
