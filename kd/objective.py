"""Objectives: weighted sums of losses, each logged under its name, for any training loop.

objective = kd.weighted([kd.Term("hard", kd.hard_labels(), 0.1), kd.Term("soft", kd.hinton(temperature=4.0), 0.9)])
loss, aux_state, logs = objective(student_logits, teacher_logits, {"label": labels})
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd.counting import EMPTY, MASKS, Counts, batch_mean, count, examples, fitted
from kd.kinds import Loss, Outputs
from kd.outputs import as_outputs, not_finite, taps_not_finite
from kd.terms import Term, guarded, of_examples, of_student, of_teacher, valid_for, weight_at
from leanax.core import axis, ranges
from leanax.core.errors import UserError, unknown

NOT_FINITE = "teacher_not_finite"


@runtime_checkable
class Objective(Protocol):
  """`(loss, aux_state, logs)` of a batch: scalars whose mean over the devices is that of the global batch.

  With several micro-batches in an update it is called for each, and the mean is taken over these, too.
  """

  def __call__(
    self,
    student: Outputs,
    teacher: Outputs | None,
    batch: Mapping[str, Any],
    *,
    step: Array,
    aux: Mapping[str, Any],
    aux_state: Mapping[str, Any],
    key: Array,
    axis_name: str | None,
  ) -> tuple[Array, dict[str, Any], dict[str, Array]]: ...


def is_objective(fn: Any) -> bool:
  """Returns whether a function takes the arguments of an objective; a loss gives one number per example instead."""
  if isinstance(fn, Loss):
    return False
  try:
    inspect.signature(fn).bind(None, None, None, step=0, aux={}, aux_state={}, key=None, axis_name=None)
  except TypeError:  # nor is it a function
    return False
  except ValueError:  # it has no signature
    return True
  return True


NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Weighted:
  """The objective of `weighted`.

  Attributes:
    terms: the losses with their weights.
    output: the output that the metrics read, of a network with several.
  """

  terms: tuple[Term, ...]
  output: str = ""

  @property
  def student(self) -> tuple[str, ...]:
    """The taps that the losses read of the student."""
    return self._taps("student")

  @property
  def teacher(self) -> tuple[str, ...]:
    """The taps that the losses read of the teacher."""
    return self._taps("teacher")

  def parts(self, logs: Mapping[str, Array], step: Array) -> dict[str, Array]:
    """Returns what each term adds to the loss, weight times value, from the logs of the same step."""
    return {term.name: weight_at(term, step) * logs[term.name] for term in self.terms}

  def task(self, logs: Mapping[str, Array], step: Array) -> Array:
    """Returns the part of the loss that the terms without a teacher make, from the logs of the same step."""
    parts = self.parts(logs, step)
    own = [parts[term.name] for term in self.terms if not term.loss.needs_teacher]
    return sum(own, jnp.zeros((), jnp.float32).astype(own[0].dtype if own else jnp.float32))

  def counts(self, batch: Mapping[str, Any]) -> Counts:
    """Returns how much of a batch, or of one part of it, counts; the counts of several parts are added."""
    terms = {term.name: count(term.counted(batch)) for term in self.terms}
    return Counts(terms, examples(batch), jnp.ones((), jnp.float32))

  def refuse_accumulation(self, accumulate: int) -> None:
    """Raises a UserError where a term would mean another thing on each of several micro-batches than on the batch."""
    if accumulate > 1 and self.relational:
      raise UserError(
        f"the term {self.relational[0]!r} compares the examples of a batch, or takes statistics of them, and "
        f"accumulate is {accumulate}: it would see micro-batches; expected accumulate 1"
      )

  @property
  def relational(self) -> tuple[str, ...]:
    """The names of the terms whose number per example depends on the other examples of the batch."""
    return tuple(term.name for term in self.terms if term.loss.relational)

  def _taps(self, network: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tap for term in self.terms for tap in getattr(term.loss.taps, network)))

  def init(
    self, key: Array, student: Outputs, teacher: Outputs | None, teacher_variables: Any = None
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (aux, aux_state) of the losses that train or remember something, by term name.

    Args:
      key: of what is drawn at random.
      student: the student's outputs, or their shapes.
      teacher: the teacher's outputs, or their shapes.
      teacher_variables: {"params": tree, ...} of the teacher, of which a loss may keep some.
    """
    aux, aux_state = {}, {}
    for index, term in enumerate(self.terms):
      if term.loss.init is None:
        continue
      outputs = of_student(student, teacher, term)
      constants = of_teacher(teacher, term)
      trained, kept = term.loss.init(jax.random.fold_in(key, index), outputs, constants, teacher_variables)
      aux |= {} if trained is None else {term.name: trained}
      aux_state |= {} if kept is None else {term.name: kept}
    return aux, aux_state

  def __call__(
    self,
    student: Outputs | Any,
    teacher: Outputs | Any | None,
    batch: Mapping[str, Any],
    *,
    step: Array | int = 0,
    aux: Mapping[str, Any] = NOTHING,
    aux_state: Mapping[str, Any] = NOTHING,
    key: Array | None = None,
    axis_name: str | None = None,
    counts: Counts | None = None,
  ) -> tuple[Array, dict[str, Any], dict[str, Array]]:
    """Returns (loss, aux_state, logs) of a batch.

    Args:
      student: logits (batch, *positions, classes), or `Outputs` with the activations that the losses read.
      teacher: the same of the teacher, a constant; None without one.
      batch: what the losses read; see `weighted`.
      step: the number of updates so far, for weights and temperatures that follow schedules.
      aux: what the losses train, by term name, from `init`; the loop trains it beside the student's parameters.
      aux_state: what they remember, from `init` or from the step before.
      key: randomness of this step, for losses that draw.
      axis_name: the device axis, or None. With one, the loss and the logs are this device's share: their means over
        the axis (`jax.lax.pmean`) are those of the batch.
      counts: where `batch` is one of several micro-batches, the `counts` of all of them on all devices, added: the mean
        over the micro-batches and devices is then that of the whole batch.
    """
    student, teacher = as_outputs(student), None if teacher is None else as_outputs(teacher)
    total, states, logs = jnp.zeros((), jnp.float32), dict(aux_state), {}
    every = axis.psum(self.counts(batch), axis_name) if counts is None else counts
    if every.examples is not None:
      if not isinstance(every.examples, jax.core.Tracer) and not every.examples:
        raise UserError(EMPTY)
      logs["examples_left"] = every.examples  # inside jit nothing can be raised: the loop stops where it is 0
    for index, term in enumerate(self.terms):
      read = of_student(student, teacher, term)
      valid = of_examples(term, batch, read.logits)
      over = valid, axis_name, every.terms[term.name], every.parts
      per_example, after, notes = term.loss(
        guarded(read, valid),
        of_teacher(teacher, term),
        term.own(batch) if valid is None else {**term.own(batch), "valid": valid_for(term.loss, valid)},
        aux=aux.get(term.name),
        aux_state=aux_state.get(term.name),
        key=None if key is None else jax.random.fold_in(key, index),
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
    not_finite = [
      self._teacher_logits_not_finite(teacher, batch),
      self._teacher_taps_not_finite(teacher, total, axis_name),
    ]
    found = [number * every.parts for number in not_finite if number is not None]
    return total, states, logs | ({NOT_FINITE: sum(found[1:], found[0])} if found else {})

  def _teacher_logits_not_finite(self, teacher: Any, batch: Mapping[str, Any]) -> Array | None:
    """Returns for how many examples the teacher's logits are not finite; the loop stops where it is not 0."""
    found = []
    for term in self.terms if teacher is not None else ():
      # Logits that nobody reads would be computed for this alone.
      if term.loss.needs_teacher and not term.loss.taps.teacher:
        read = of_teacher(teacher, term)
        bad, valid = not_finite(read, batch.get("class_mask")), term.counted(batch)
        if bad is not None:
          found.append(jnp.sum((bad if valid is None else bad & fitted(valid, bad.shape)).astype(jnp.float32)))
    return jnp.max(jnp.stack(found)) if found else None

  def _teacher_taps_not_finite(self, teacher: Any, loss: Array, axis_name: str | None) -> Array | None:
    """Returns how many examples have activations of the teacher that are not finite; 0 where the loss is finite."""
    taps = {} if teacher is None else {name: teacher.taps[name] for name in self.teacher}
    suspicious = ~jnp.isfinite(jax.lax.stop_gradient(loss))
    return taps_not_finite(jax.lax.stop_gradient(taps), suspicious, axis_name) if taps else None


def weighted(terms: Sequence[Term], output: str = "") -> Weighted:
  """Returns the objective sum_k weight_k * mean over the batch of loss_k.

  The batch may hold "valid", (batch,) or (batch, *positions) bools that leave padding out of the mean, and
  "class_mask", bools that broadcast to the logits, the classes that count.

  Args:
    terms: at least one; names differ.
    output: which output of a network with several is compared with the labels for the metrics; the terms' own where
      all of them read one.
  """
  if isinstance(terms, Term) or not isinstance(terms, Iterable) or not all(isinstance(term, Term) for term in terms):
    raise UserError("an objective takes a list of kd.Term(name, loss); got something else")
  names = [term.name for term in terms]
  if not names or len(set(names)) < len(names):
    raise UserError(f"an objective needs terms of different names; got {', '.join(names) or 'none'}")
  for term in terms:
    if not isinstance(term.loss, Loss):
      given = getattr(term.loss, "__name__", repr(term.loss))
      raise UserError(
        f"the loss of term {term.name!r} is {given}, not a loss; expected a call, such as kd.hinton(), or your own "
        "function of student's and teacher's logits in kd.loss"
      )
    if term.mask not in MASKS:
      raise unknown(f"mask of term {term.name!r}", term.mask, MASKS)
    if term.ignore_label is not None and type(term.ignore_label) is not int:
      raise UserError(f"ignore_label of term {term.name!r} is {term.ignore_label!r}; expected a whole number, or None")
    if not isinstance(term.output, str):
      raise UserError(f"output of term {term.name!r} is {term.output!r}; expected a name, such as 'boxes' or '1'")
    ranges.check(f"weight of term {term.name!r}", term.weight, ranges.WEIGHT, varies=True)
  read = {term.output for term in terms if term.output}
  return Weighted(tuple(terms), output or (min(read) if len(read) == 1 else ""))
