"""Losses on activations, made of a function of one pair of activations and summed over the pairs.

Taps are named as `graph.taps` names them (`Conv_1/kernel:out`), one or several of each network. Maps are
(batch, height, width, channels), token sequences (batch, tokens, channels), vectors (batch, channels).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import Array

from kd import checks
from kd.kinds import Context, Loss, LossOut, Outputs, Taps
from kd.reads import ANYTHING, Shapes
from leanax.core.errors import UserError

Names = str | Sequence[str]


def named(loss: str, key: str, names: Names) -> tuple[str, ...]:
  """Returns names as a tuple.

  Raises:
    UserError: a name is not a string.
  """
  found = tuple(names) if isinstance(names, Sequence) and not isinstance(names, str) else (names,)
  if not all(isinstance(name, str) for name in found):
    raise UserError(f"{loss}: {key} is {names!r}; expected a name such as 'Conv_1/kernel:out', or several")
  return found


def paired(name: str, student: Names, teacher: Names) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Returns the tap names of both networks as tuples of one length.

  Raises:
    UserError: the numbers of taps differ, or there are none.
  """
  s, t = named(name, "student", student), named(name, "teacher", teacher)
  if len(s) != len(t) or not s:
    raise UserError(f"{name}: {len(s)} taps of the student and {len(t)} of the teacher; expected pairs")
  return s, t


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
  """Makes a loss of a function of one pair of activations, summed over the pairs.

  Args:
    name: the loss's name in error messages.
    f: `f(student, teacher, aux, context) -> (batch,)` for one pair; `aux` are the pair's parameters.
    student: taps of the student.
    teacher: equally many taps of the teacher.
    init: `init(key, student_shape, teacher_shape) -> aux` for one pair; None for a loss without parameters.
    relational: whether an example's loss depends on the other examples of its batch.
    reads: the inputs beside the taps; see `kd.Loss`.
    shapes: the supported shapes; see `kd.reads`.

  Raises:
    UserError: the numbers of taps differ, or there are none; or `f` takes other arguments.
  """
  student_taps, teacher_taps = paired(name, student, teacher)
  checks.arguments(f"the function of the loss {name!r} is called as f(student, teacher, aux, context)", f, *[None] * 4)

  def fn(s: Outputs, t: Outputs, context: Context) -> LossOut:
    if init is not None and (not isinstance(context.aux, Sequence) or len(context.aux) != len(student_taps)):
      raise UserError(
        f"the loss {name!r} has parameters for each of its {len(student_taps)} pairs of taps; expected the 'aux' that "
        "its init makes"
      )
    parts = [
      f(s.taps[a], t.taps[b], None if init is None else context.aux[index], context)
      for index, (a, b) in enumerate(zip(student_taps, teacher_taps, strict=True))
    ]
    return LossOut(sum(parts[1:], parts[0]))

  def start(key: Array, s: Outputs, t: Outputs, variables: Any) -> tuple[Any, Any]:
    del variables
    assert init is not None
    keys = jax.random.split(key, len(student_taps))
    pairs = zip(keys, student_taps, teacher_taps, strict=True)
    return [init(k, s.taps[a], t.taps[b]) for k, a, b in pairs], None

  init_fn = None if init is None else start
  taps = Taps(student_taps, teacher_taps, shapes)
  return Loss(name, fn, relational=relational, reads=reads, taps=taps, init_fn=init_fn)
