"""What is minimised: a weighted sum of losses, each logged under its name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array

import kd
from leanax.core import axis, ranges
from leanax.core.errors import UserError, unknown
from leanax.engine.train.counting import MASKS, batch_mean, counted, examples_left, fitted, shielded, whole
from leanax.engine.train.outputs import as_outputs, is_one, not_finite, picked, taps_not_finite

Weight = float | Callable[[Array], Array]


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
  loss: kd.Loss
  weight: Weight = 1.0
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


@runtime_checkable
class Objective(Protocol):
  """`(loss, aux_state, logs)` of a batch: scalars whose mean over the devices is that of the global batch."""

  def __call__(
    self,
    student: kd.Outputs,
    teacher: kd.Outputs | None,
    batch: Mapping[str, Any],
    *,
    step: Array,
    aux: Mapping[str, Any],
    aux_state: Mapping[str, Any],
    key: Array,
    axis_name: str | None,
  ) -> tuple[Array, dict[str, Any], dict[str, Array]]: ...


def weight_at(term: Term, step: Array) -> Any:
  """A term's weight at a step."""
  return term.weight(step) if callable(term.weight) else term.weight


@dataclass(frozen=True)
class Weighted:
  """The objective of `weighted`.

  Attributes:
    terms: its losses.
    output: which output of a network with several the metrics read.
  """

  terms: tuple[Term, ...]
  output: str = ""

  @property
  def student(self) -> tuple[str, ...]:
    """The taps that its losses read of the student."""
    return self._taps("student")

  @property
  def teacher(self) -> tuple[str, ...]:
    """Those of the teacher."""
    return self._taps("teacher")

  def parts(self, logs: Mapping[str, Array], step: Array) -> dict[str, Array]:
    """What each term adds to the loss, weight times value, from the logs of the same step."""
    return {term.name: weight_at(term, step) * logs[term.name] for term in self.terms}

  def task(self, logs: Mapping[str, Array], step: Array) -> Array:
    """The part of the loss that is of the terms without a teacher, from the logs of the same step."""
    parts = self.parts(logs, step)
    own = [parts[term.name] for term in self.terms if not term.loss.needs_teacher]
    return sum(own, jnp.zeros((), jnp.float32).astype(own[0].dtype if own else jnp.float32))

  def refuse_accumulation(self, accumulate: int) -> None:
    """Raises a UserError where a term would mean another thing on each of several micro-batches than on the batch."""
    if accumulate > 1 and self.relational:
      raise UserError(
        f"the term {self.relational[0]!r} compares the examples of a batch, or takes statistics of them, and "
        f"accumulate is {accumulate}: it would see micro-batches; expected accumulate 1"
      )

  @property
  def relational(self) -> tuple[str, ...]:
    """The names of its terms in which an example's number depends on the other examples of the batch."""
    return tuple(term.name for term in self.terms if term.loss.relational)

  def _taps(self, whose: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tap for term in self.terms for tap in getattr(term.loss.taps, whose)))

  def init(
    self, key: Array, student: kd.Outputs, teacher: kd.Outputs | None, teacher_variables: Any = None
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """(aux, aux_state) of the losses that train or remember something, by term name.

    Args:
      key: of what is drawn at random.
      student: its outputs as shapes.
      teacher: its outputs as shapes.
      teacher_variables: its parameters, of which a loss may keep some.
    """
    aux, aux_state = {}, {}
    for index, term in enumerate(self.terms):
      if term.loss.init is None:
        continue
      outputs = _of_student(student, teacher, term)
      its = _of_teacher(teacher, term)
      trained, kept = term.loss.init(jax.random.fold_in(key, index), outputs, its, teacher_variables)
      aux |= {} if trained is None else {term.name: trained}
      aux_state |= {} if kept is None else {term.name: kept}
    return aux, aux_state

  def __call__(
    self,
    student: kd.Outputs,
    teacher: kd.Outputs | None,
    batch: Mapping[str, Any],
    *,
    step: Array,
    aux: Mapping[str, Any],
    aux_state: Mapping[str, Any],
    key: Array,
    axis_name: str | None,
  ) -> tuple[Array, dict[str, Any], dict[str, Array]]:
    student, teacher = as_outputs(student), None if teacher is None else as_outputs(teacher)
    total, states, logs = jnp.zeros((), jnp.float32), dict(aux_state), {}
    number = examples_left(batch, axis_name)
    logs |= {} if number is None else {"examples_left": number}  # the loop stops where it is 0
    update = whole(batch)
    for index, term in enumerate(self.terms):
      read = _of_student(student, teacher, term)
      valid, among = (_of_examples(term, one, read.logits) for one in (batch, update.batch))
      over = valid, axis_name, among, update.micro_batches
      per_example, after, notes = term.loss(
        _guarded(read, valid),
        _of_teacher(teacher, term),
        batch if valid is None else {**batch, "valid": _for(term.loss, valid)},
        aux=aux.get(term.name),
        aux_state=aux_state.get(term.name),
        key=jax.random.fold_in(key, index),
        axis_name=axis_name,
        class_mask=batch.get("class_mask"),
        step=step,
      )
      if after is not None:
        states[term.name] = after
      value = batch_mean(per_example, *over)
      weight = weight_at(term, step)
      total = total.astype(value.dtype) + weight * value
      logs[term.name] = value
      logs |= {f"{term.name}/{k}": batch_mean(v, *over) for k, v in notes.items()}
    logs |= self._of_the_teacher(teacher, batch, axis_name)
    return total, states, self._of_activations(teacher, total, axis_name, logs)

  def _of_the_teacher(self, teacher: Any, batch: Mapping[str, Any], axis_name: str | None) -> dict[str, Array]:
    """How many examples of the batch the teacher's logits are not finite in; the loop stops where it is not 0."""
    found = []
    for term in self.terms if teacher is not None else ():
      # Logits that nobody reads would be computed for this alone.
      if term.loss.needs_teacher and not term.loss.taps.teacher:
        read = _of_teacher(teacher, term)
        bad, valid = not_finite(read, batch.get("class_mask")), term.counted(batch)
        if bad is not None:
          found.append(jnp.sum((bad if valid is None else bad & fitted(valid, bad.shape)).astype(jnp.float32)))
    return {NOT_FINITE: jnp.max(jnp.stack(found)) * axis.size(axis_name)} if found else {}

  def _of_activations(
    self, teacher: Any, loss: Array, axis_name: str | None, logs: dict[str, Array]
  ) -> dict[str, Array]:
    """Likewise of its activations, where the loss is not finite."""
    taps = {} if teacher is None else {name: teacher.taps[name] for name in self.teacher}
    if not taps:
      return logs
    found = taps_not_finite(jax.lax.stop_gradient(taps), ~jnp.isfinite(jax.lax.stop_gradient(loss)), axis_name)
    return logs | {NOT_FINITE: logs.get(NOT_FINITE, 0.0) + found}


NOT_FINITE = "teacher_not_finite"


def _of_student(student: kd.Outputs, teacher: kd.Outputs | None, term: Term) -> kd.Outputs:
  """The student's outputs as a term reads them; where it has one alone, a name is that of one of the teacher's."""
  named = teacher is None or is_one(teacher.logits) or not is_one(student.logits)
  return picked(student, term.output if named else "", term.loss, f"term {term.name!r}")


def _of_teacher(teacher: Any, term: Term) -> Any:
  """The teacher's outputs as a term reads them; a loss that needs none has none to name."""
  if teacher is None or not term.loss.needs_teacher:
    return teacher
  return picked(teacher, term.output, term.loss, f"term {term.name!r}", teacher=True)


def _of_examples(term: Term, batch: Mapping[str, Any], logits: Any) -> Array | None:
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


def _guarded(read: kd.Outputs, valid: Array | None) -> kd.Outputs:
  """A student's outputs as a term reads them; what does not count for it gets no gradient."""
  if valid is None:
    return read
  rows = fitted(valid, valid.shape[:1])
  logits = jax.tree.map(lambda x: shielded(x, valid if valid.ndim < x.ndim else rows), read.logits)
  return read._replace(logits=logits, taps={name: shielded(x, rows) for name, x in read.taps.items()})


def _for(loss: kd.Loss, valid: Array) -> Array:
  """The mask as a loss reads it: activations have no positions of labels, so one that reads them gets (batch,)."""
  return fitted(valid, valid.shape[:1]) if loss.taps.student else valid


def weighted(terms: Sequence[Term], output: str = "") -> Weighted:
  """The objective sum_k weight_k * mean over the batch of loss_k.

  The batch may hold "valid", (batch,) or (batch, *positions) bools that leave padding out of the mean, and
  "class_mask", bools that broadcast to the logits, the classes that count.

  Args:
    terms: at least one; names differ.
    output: which output of a network with several is compared with the labels for the metrics; the terms' own where
      all of them read one.
  """
  if isinstance(terms, Term) or not all(isinstance(term, Term) for term in terms):
    raise UserError("an objective is made of several engine.Term(name, loss), in a list; got something else")
  names = [term.name for term in terms]
  if not names or len(set(names)) < len(names):
    raise UserError(f"an objective needs terms of different names; got {', '.join(names) or 'none'}")
  for term in terms:
    if not isinstance(term.loss, kd.Loss):
      given = getattr(term.loss, "__name__", repr(term.loss))
      raise UserError(
        f"the loss of term {term.name!r} is {given}, and no loss; expected one that is made, as kd.hinton()"
      )
    if term.mask not in MASKS:
      raise unknown(f"mask of term {term.name!r}", term.mask, MASKS)
    if term.ignore_label is not None and type(term.ignore_label) is not int:
      raise UserError(f"ignore_label of term {term.name!r} is {term.ignore_label!r}; expected a whole number, or None")
    if not isinstance(term.output, str):
      raise UserError(f"output of term {term.name!r} is {term.output!r}; expected a name, such as 'boxes' or '1'")
    ranges.check(f"weight of term {term.name!r}", term.weight, ranges.NOT_NEGATIVE, varies=True)
  read = {term.output for term in terms if term.output}
  return Weighted(tuple(terms), output or (min(read) if len(read) == 1 else ""))
