"""A teacher that trains in the step of its student, each by its own objective and its own optimizer.

The student learns from what the teacher gives for the batch before both move, in training mode and as constants; the
teacher never sees the student. So it is two interleaved training loops, compiled as one. No paper: the plainest worked
examples of distillation train both networks in one loop.

step = together.together(student_step, teacher_step, teacher_forward)  # student_step is made with teacher=current
state = together.start(student_state, teacher_state)
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from leanax.core import keys
from leanax.core.errors import UserError
from leanax.engine.train.forward import Forward
from leanax.engine.train.mutual import APART
from leanax.engine.train.state import TrainState
from leanax.engine.train.step import Step


def current(run: Callable[[Array], Any], x: Array) -> Any:
  """Returns what the teacher gives now: the `teacher` with which the student's step is made."""
  return run(x)


def start(student: TrainState, teacher: TrainState) -> TrainState:
  """Returns the student's state with the teacher's in it; one `step` counts for both."""
  return student.replace(teacher=teacher.replace(step=None))


def with_teacher(fn: Callable[..., Any], forward: Forward) -> Callable[..., Any]:
  """Gives a function of the student's state the outputs of the teacher that the state holds.

  Args:
    fn: `fn(state, batch, teacher_variables, *, axis_name=None, seed=0, **more)`, made with `teacher=current`: the
      student's step, or `engine.term_norm`.
    forward: the teacher; its activations come as `kd.Outputs` (`forward.tapped`) where the student's losses read them.

  Returns:
    The same function without teacher variables.

  Raises:
    UserError: the state holds no teacher, or there is another one.
  """

  def call(state, batch, teacher_variables=None, *, axis_name=None, seed=0, **more):
    teacher = state.teacher
    if teacher is None:
      raise UserError("the teacher is trained in the student's step, and the state holds none; expected together.start")
    if teacher_variables is not None:
      raise UserError("the teacher is trained in the student's step; expected no teacher_variables beside it")
    key = keys.step_key(seed, state.step, "teacher")
    key = key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))

    def run(x: Array) -> Any:
      args = teacher.variables, teacher.qparams, teacher.quant_state
      return forward(*args, x, train=True, key=key, axis_name=axis_name)[0]

    return fn(state, batch, run, axis_name=axis_name, seed=seed, **more)

  return call


def together(student: Step, teacher: Step, forward: Forward) -> Step:
  """Returns the step of both, `step(state, batch, *, axis_name=None, seed=0) -> (state, metrics)`.

  Args:
    student: the step of the student, made with `teacher=current`; its batch has no "teacher_logits".
    teacher: the step of the teacher, which has no teacher itself.
    forward: as of `with_teacher`.

  Returns:
    A step of states from `start`. The metrics are the student's, and the teacher's as "teacher/loss" and so on.
  """
  student = with_teacher(student, forward)

  def step(state, batch, teacher_variables=None, *, axis_name=None, seed=0):
    moved, metrics = student(state, batch, teacher_variables, axis_name=axis_name, seed=seed)
    beside = state.teacher.replace(step=state.step)
    beside, own = teacher(beside, batch, axis_name=axis_name, seed=seed + APART)
    return start(moved, beside), {**metrics, **{f"teacher/{name}": value for name, value in own.items()}}

  return step
