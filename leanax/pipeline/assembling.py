"""A student that is deployed with what a loss trained and with its teacher's classifier (`kd.simkd`), as one model.

Its layers after the loss's tap are replaced (`graph.replace_head`): the loss has not trained them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import kd
from kd.maps import common_size
from leanax.core.errors import UserError
from leanax.graph.edits import replace_head


class Plan(NamedTuple):
  """The edit and the parameters by which a stage's student is put together when it is evaluated or saved.

  Attributes:
    edit: of its function, "replace_head".
    params: `params(aux, aux_state, teacher)`, the head's parameters; `teacher` is the teacher's variables.
  """

  edit: dict[str, Any]
  params: Callable[[Any, Any, Any], Any]


def plan(
  objective: kd.Weighted,
  fn: Callable[..., Any],
  image: tuple[int, ...],
  classes: int,
  variables: Any,
  outputs: tuple[Any, Any],
  aux: tuple[Any, Any],
  teacher: Any,
  chosen: Sequence[int] = (),
  folded: bool = False,
) -> Plan | None:
  """Returns how the student of a stage is put together; None where its objective trains nothing that is deployed.

  Args:
    objective: what the stage minimises.
    fn: the student's function in evaluation mode.
    image: (height, width, channels) of its input.
    classes: of its logits.
    variables: its variables, or their shapes.
    outputs: the student's and its teacher's (`kd.Outputs`), or their shapes.
    aux: (aux, aux_state), or their shapes.
    teacher: the teacher's variables, or their shapes.
    chosen: the teacher's class for each of the student's; () where they are the same.
    folded: whether the student's batch norms are folded or its integers are simulated.

  Raises:
    UserError: there are two such terms, the student is edited, or the teacher has no such classifier.
  """
  terms = {term.name: term.loss for term in objective.terms if term.loss.head}
  if not terms:
    return None
  if len(terms) > 1:
    raise UserError(f"{' and '.join(terms)} train a classifier each; expected one such term")
  ((term, loss),) = terms.items()
  if folded:
    raise UserError(f"{loss.name} builds a new model: expected a float stage, and one that quantizes after it")

  def params(aux: Any, aux_state: Any, teacher: Any) -> Any:
    assert loss.head is not None
    return loss.head(aux[term], aux_state[term], teacher, classes, tuple(chosen))

  tap = loss.taps.student[0]
  student, teacher_map = outputs[0].taps[tap], outputs[1].taps[loss.taps.teacher[0]]
  example = jax.ShapeDtypeStruct((1, *image), jnp.float32)
  taken = variables["params"] if isinstance(variables["params"], Mapping) else ()
  name = next(n for n in (loss.name, *(f"{loss.name}_{i}" for i in range(2, 99))) if n not in taken)
  steps = kd.simkd_steps(common_size(student, teacher_map) if len(student.shape) == 4 else None)
  shapes = jax.eval_shape(params, *aux, teacher)
  return Plan(replace_head.describe(fn, variables, (example,), tap, steps, shapes, name), params)
