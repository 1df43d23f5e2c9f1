"""A term of an objective: a loss with its weight, and what it is given of a batch and of the networks' outputs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from kd.base import Schedule, at
from kd.counting import counted, fitted, shielded
from kd.kinds import Loss, Outputs
from kd.outputs import is_one, picked
from leanax.core.errors import UserError


class Term(NamedTuple):
  """One loss of an objective.

  Attributes:
    name: it is logged under this name, and owns `aux[name]` and `aux_state[name]`.
    loss: a loss of `kd`.
    weight: a number, or a function of the step.
    mask: which examples, or positions, count: "all", or those whose label is known ("labelled") or is -1
      ("unlabelled").
    ignore_label: a label, such as 255 or -100, that leaves its example or position out.
    output: which output it reads of networks that have several: its name in their tree, such as "boxes", "heads/boxes"
      or, of a tuple, "1". A network with one output only is read as it is beside one with several.
  """

  name: str
  loss: Loss
  weight: Schedule = 1.0
  mask: str = "all"
  ignore_label: int | None = None
  output: str = ""

  @property
  def counts_by_labels(self) -> bool:
    """Whether labels say what counts for it."""
    return self.mask != "all" or self.ignore_label is not None

  def counted(self, batch: Mapping[str, Any]) -> Array | None:
    """What counts for it: (batch,) or (batch, *positions) bools, None for everything.

    Raises:
      UserError: labels say it, and the batch has none.
    """
    if self.counts_by_labels and "label" not in batch:
      key, value = ("mask", self.mask) if self.mask != "all" else ("ignore_label", self.ignore_label)
      raise UserError(f"term {self.name!r} has {key} {value!r}: labels say what counts, and the batch has no 'label'")
    return counted(batch, self.mask, self.ignore_label)


def weight_at(term: Term, step: Array | int) -> Any:
  """Returns a term's weight at a step."""
  return at(term.weight, step)


def of_student(student: Outputs, teacher: Outputs | None, term: Term) -> Outputs:
  """The student's outputs as a term reads them; where it has one alone, a name is that of one of the teacher's."""
  named = teacher is None or is_one(teacher.logits) or not is_one(student.logits)
  return picked(student, term.output if named else "", term.loss, f"term {term.name!r}")


def of_teacher(teacher: Any, term: Term) -> Any:
  """The teacher's outputs as a term reads them; a loss that needs none has none to name."""
  if teacher is None or not term.loss.needs_teacher:
    return teacher
  return picked(teacher, term.output, term.loss, f"term {term.name!r}", teacher=True)


def of_examples(term: Term, batch: Mapping[str, Any], logits: Any) -> Array | None:
  """What counts for a term: labels of one output, (batch, *positions, 1), are of its examples.

  Raises:
    UserError: labels of several outputs, of which a loss has one number, say what counts.
  """
  valid = term.counted(batch)
  on_taps = bool(term.loss.taps.student)
  if valid is None or not term.counts_by_labels or on_taps or not is_one(logits) or valid.ndim < logits.ndim:
    return valid
  if valid.shape[-1] == logits.shape[-1] == 1:
    return valid[..., 0]
  raise UserError(
    f"term {term.name!r} counts by labels, which are {valid.shape} for logits {logits.shape}; expected a label of each "
    "example or position; which of several outputs count is said by batch['class_mask'], which examples by "
    "batch['valid']"
  )


def guarded(read: Outputs, valid: Array | None) -> Outputs:
  """A student's outputs as a term reads them; what does not count for it gets no gradient."""
  if valid is None:
    return read
  rows = fitted(valid, valid.shape[:1])
  logits = jax.tree.map(lambda x: shielded(x, valid if valid.ndim < x.ndim else rows), read.logits)
  return read._replace(logits=logits, taps={name: shielded(x, rows) for name, x in read.taps.items()})


def valid_for(loss: Loss, valid: Array) -> Array:
  """The mask as a loss reads it: activations have no positions of labels, so one that reads them gets (batch,)."""
  return fitted(valid, valid.shape[:1]) if loss.taps.student else valid
