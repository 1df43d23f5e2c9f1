"""A term of an objective: a loss, its weight, and its part of the batch and of the networks' outputs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from kd.base import Schedule, at
from kd.counting import counted, fitted, shielded
from kd.kinds import Loss, Outputs
from kd.outputs import is_one, picked
from leanax.core.errors import UserError

LABELS = ("label", "mix_label", "target")  # keys of a batch that may be mappings by the names of outputs


class Term(NamedTuple):
  """One loss of an objective.

  Attributes:
    name: the name in logs, and the key of its parameters and state in `aux` and `aux_state`.
    loss: a loss of `kd`.
    weight: a number, or a function of the step.
    mask: the valid examples, or positions: "all", or those whose label is known ("labelled") or -1 ("unlabelled").
    ignore_label: a label, such as 255 or -100, whose examples or positions are excluded.
    output: the name of one output of networks that have several, such as "boxes", "heads/boxes" or, in a tuple, "1".
      A network with a single output needs no name.
  """

  name: str
  loss: Loss
  weight: Schedule = 1.0
  mask: str = "all"
  ignore_label: int | None = None
  output: str = ""

  @property
  def counts_by_labels(self) -> bool:
    """True if the valid examples depend on their labels."""
    return self.mask != "all" or self.ignore_label is not None

  def own(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the batch with the labels of the term's output, where labels are a mapping by the names of outputs.

    A term without an output has all of them.
    """
    several = [key for key in LABELS if isinstance(batch.get(key), Mapping)] if self.output else []
    others = {key: value for key, value in batch.items() if key not in several}
    return {**others, **{key: batch[key][self.output] for key in several if self.output in batch[key]}}

  def counted(self, batch: Mapping[str, Any]) -> Array | None:
    """Returns the valid examples, (batch,) or (batch, *positions) bools, None for all.

    Raises:
      UserError: they depend on labels, and the batch has none.
    """
    batch = self.own(batch)
    if self.counts_by_labels and isinstance(batch.get("label"), Mapping):
      raise UserError(
        f"term {self.name!r} counts by labels, which are of several outputs; expected one of them as its 'output'"
      )
    if self.counts_by_labels and "label" not in batch:
      key, value = ("mask", self.mask) if self.mask != "all" else ("ignore_label", self.ignore_label)
      raise UserError(f"term {self.name!r} has {key} {value!r}: it needs labels, and the batch has no 'label'")
    return counted(batch, self.mask, self.ignore_label)


def weight_at(term: Term, step: Array | int) -> Any:
  """Returns a term's weight at a step."""
  return at(term.weight, step)


def of_student(student: Outputs, teacher: Outputs | None, term: Term) -> Outputs:
  """Returns the student's outputs for a term; `term.output` names the teacher's if the student has only one."""
  named = teacher is None or is_one(teacher.logits) or not is_one(student.logits)
  return picked(student, term.output if named else "", term.loss, f"term {term.name!r}")


def of_teacher(teacher: Any, term: Term) -> Any:
  """Returns the teacher's outputs for a term, unselected if the loss needs no teacher."""
  if teacher is None or not term.loss.needs_teacher:
    return teacher
  return picked(teacher, term.output, term.loss, f"term {term.name!r}", teacher=True)


def of_examples(term: Term, batch: Mapping[str, Any], logits: Any) -> Array | None:
  """Returns the valid examples of a term; labels (batch, *positions, 1) of one output lose their last axis.

  Raises:
    UserError: the mask depends on labels per output, and the loss has one number per example.
  """
  valid = term.counted(batch)
  on_taps = bool(term.loss.taps.student)
  if valid is None or not term.counts_by_labels or on_taps or not is_one(logits) or valid.ndim < logits.ndim:
    return valid
  if valid.shape[-1] == logits.shape[-1] == 1:
    return valid[..., 0]
  raise UserError(
    f"term {term.name!r} counts by labels, which are {valid.shape} for logits {logits.shape}; expected one label per "
    "example or position; mask outputs by batch['class_mask'], and examples by batch['valid']"
  )


def guarded(read: Outputs, valid: Array | None) -> Outputs:
  """Returns a student's outputs for a term, without gradient for invalid examples."""
  if valid is None:
    return read
  rows = fitted(valid, valid.shape[:1])
  logits = jax.tree.map(lambda x: shielded(x, valid if valid.ndim < x.ndim else rows), read.logits)
  return read._replace(logits=logits, taps={name: shielded(x, rows) for name, x in read.taps.items()})


def valid_for(loss: Loss, valid: Array) -> Array:
  """Returns the mask for a loss: (batch,) for a loss on activations, which have no positions of labels."""
  return fitted(valid, valid.shape[:1]) if loss.taps.student else valid
