"""What is minimised: a weighted sum of losses, each logged under its name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array

import kd
from core import axis, ranges
from core.errors import UserError, unknown

Weight = float | Callable[[Array], Array]
MASKS = ("all", "labelled", "unlabelled")


class Term(NamedTuple):
  """One loss of an objective.

  Attributes:
    name: it is logged under this name, and owns `aux[name]` and `aux_state[name]`.
    loss: a loss of `kd`.
    weight: a number, or a function of the step.
    mask: which examples count: "all", or those whose label is known ("labelled") or is -1 ("unlabelled").
  """

  name: str
  loss: kd.Loss
  weight: Weight = 1.0
  mask: str = "all"


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


def batch_mean(per_example: Array, valid: Array | None, axis_name: str | None) -> Array:
  """This device's part of the mean over the valid examples of all: that mean is the mean over devices of the parts."""
  if valid is None:
    return jnp.mean(per_example)
  count = axis.pmean(jnp.sum(valid.astype(per_example.dtype)), axis_name)
  return jnp.sum(jnp.where(valid, per_example, 0.0)) / jnp.where(count > 0, count, 1.0)


def counted(batch: Mapping[str, Any], mask: str) -> Array | None:
  """(batch,) bools: the examples that count under a mask; None where all do."""
  valid = batch.get("valid")
  if mask == "all" or "label" not in batch:
    return valid
  known = batch["label"] >= 0
  if "mix_label" in batch:  # an example that is mixed with an unlabelled one has no label for a part of its image
    known &= batch["mix_label"] >= 0
  chosen = known if mask == "labelled" else ~known
  return chosen if valid is None else chosen & valid


def examples_left(batch: Mapping[str, Any], axis_name: str | None) -> Array | None:
  """How many examples count, with some class that counts; None where nothing is masked.

  Returns:
    A float32 scalar, this device's number times the devices: its mean over these is the number of the whole batch.

  Raises:
    UserError: none does, and the masks are known: inside jit the number is all that can be had.
  """
  examples, classes = batch.get("valid"), batch.get("class_mask")
  if examples is None and classes is None:
    return None
  some = jnp.ones((), bool) if classes is None else jnp.any(classes, axis=-1)
  counted = some if examples is None else examples & some
  number = jnp.sum(counted.astype(jnp.float32)) * axis.size(axis_name)
  if not isinstance(number, jax.core.Tracer) and not number:
    raise UserError(EMPTY)
  return number


EMPTY = (
  "the batch is masked as a whole: expected 'valid' to leave an example, and 'class_mask' a class of it, that counts"
)


def weight_at(term: Term, step: Array) -> Any:
  """A term's weight at a step."""
  return term.weight(step) if callable(term.weight) else term.weight


@dataclass(frozen=True)
class Weighted:
  """The objective of `weighted`.

  Attributes:
    terms: its losses.
  """

  terms: tuple[Term, ...]

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
    own = [parts[term.name] for term in self.terms if not kd.needs_teacher(term.loss)]
    return sum(own, jnp.zeros((), jnp.float32).astype(own[0].dtype if own else jnp.float32))

  @property
  def relational(self) -> tuple[str, ...]:
    """The names of its terms in which an example's number depends on the other examples of the batch."""
    return tuple(term.name for term in self.terms if kd.relational(term.loss))

  def _taps(self, whose: str) -> tuple[str, ...]:
    losses = [term.loss for term in self.terms if isinstance(term.loss, kd.TapLoss)]
    return tuple(dict.fromkeys(tap for loss in losses for tap in getattr(loss, whose)))

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
      if not isinstance(term.loss, kd.TapLoss) or term.loss.init is None:
        continue
      started = term.loss.init(jax.random.fold_in(key, index), student, teacher, teacher_variables)  # pyrefly: ignore
      trained, kept = started
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
    total, states, logs = jnp.zeros((), jnp.float32), dict(aux_state), {}
    number = examples_left(batch, axis_name)
    logs |= {} if number is None else {"examples_left": number}  # the loop stops where it is 0
    for index, term in enumerate(self.terms):
      valid = counted(batch, term.mask)
      per_example, after, notes = term.loss(
        student,
        teacher,
        batch if valid is None else {**batch, "valid": valid},
        aux=aux.get(term.name),
        aux_state=aux_state.get(term.name),
        key=jax.random.fold_in(key, index),
        axis_name=axis_name,
        class_mask=batch.get("class_mask"),
        step=step,
      )
      if after is not None:
        states[term.name] = after
      value = batch_mean(per_example, valid, axis_name)
      weight = weight_at(term, step)
      total = total.astype(value.dtype) + weight * value
      logs[term.name] = value
      logs |= {f"{term.name}/{k}": batch_mean(v, valid, axis_name) for k, v in notes.items()}
    return total, states, logs


def weighted(terms: Sequence[Term]) -> Weighted:
  """The objective sum_k weight_k * mean over the batch of loss_k.

  The batch may hold "valid", (batch,) bools that leave padding out of the mean, and "class_mask", bools that
  broadcast to the logits, the classes that count.

  Args:
    terms: at least one; names differ.
  """
  names = [term.name for term in terms]
  if not names or len(set(names)) < len(names):
    raise UserError(f"an objective needs terms of different names; got {', '.join(names) or 'none'}")
  for term in terms:
    if term.mask not in MASKS:
      raise unknown(f"mask of term {term.name!r}", term.mask, MASKS)
    ranges.check(f"weight of term {term.name!r}", term.weight, ranges.NOT_NEGATIVE, varies=True)
  return Weighted(tuple(terms))
