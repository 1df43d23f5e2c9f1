"""How most losses on activations are made: of a function of one pair of them, summed over the pairs.

Taps are named as `graph.taps` names them (`Conv_1/kernel:out`), one or several of each network. Maps are
(batch, height, width, channels), token sequences (batch, tokens, channels), vectors (batch, channels).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import Array

from kd.kinds import Context, Loss, LossOut, Outputs, Taps
from kd.reads import ANYTHING, Shapes
from leanax.core.errors import UserError

Names = str | Sequence[str]


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
  f: Callable[[Array, Array, Any, Context], Array],
  student: Names,
  teacher: Names,
  init: Callable[[Array, Any, Any], Any] | None = None,
  *,
  relational: bool = False,
  reads: tuple[str, ...] = (),
  shapes: Shapes = ANYTHING,
) -> Loss:
  """A loss on pairs of activations, summed over the pairs.

  Args:
    name: how errors call it.
    f: `f(student, teacher, aux, context) -> (batch,)` of one pair; `aux` is that of the pair.
    student: taps of the student.
    teacher: as many taps of the teacher.
    init: `init(key, student_shape, teacher_shape) -> aux` of one pair; None for a loss that trains nothing.
    relational: whether an example's number depends on the other examples of its batch.
    reads: what it reads beside its taps; see `kd.Loss`.
    shapes: those of the activations; see `kd.reads`.

  Raises:
    UserError: the numbers of taps differ, or there are none.
  """
  mine, its = paired(name, student, teacher)

  def fn(s: Outputs, t: Outputs, context: Context) -> LossOut:
    if init is not None and (not isinstance(context.aux, Sequence) or len(context.aux) != len(mine)):
      raise UserError(
        f"the loss {name!r} trains a part for each of {len(mine)} pairs of taps; expected as 'aux' what its init makes"
      )
    parts = [
      f(s.taps[a], t.taps[b], None if init is None else context.aux[index], context)
      for index, (a, b) in enumerate(zip(mine, its, strict=True))
    ]
    return LossOut(sum(parts[1:], parts[0]))

  def start(key: Array, s: Outputs, t: Outputs, variables: Any) -> tuple[Any, Any]:
    del variables
    assert init is not None
    keys = jax.random.split(key, len(mine))
    return [init(k, s.taps[a], t.taps[b]) for k, a, b in zip(keys, mine, its, strict=True)], None

  init_fn = None if init is None else start
  return Loss(name, fn, relational=relational, reads=reads, taps=Taps(mine, its, shapes), init_fn=init_fn)
