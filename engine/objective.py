"""What is minimised: a weighted sum of losses, each logged under its name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array

import kd
from core import axis
from core.errors import UserError

Weight = float | Callable[[Array], Array]


class Term(NamedTuple):
  """One loss of an objective.

  Attributes:
    name: it is logged under this name, and owns `aux[name]` and `aux_state[name]`.
    loss: a loss of `kd`.
    weight: a number, or a function of the step.
  """

  name: str
  loss: kd.Loss
  weight: Weight = 1.0


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


def weighted(terms: Sequence[Term]) -> Objective:
  """The objective sum_k weight_k * mean over the batch of loss_k.

  The batch may hold "where", (batch,) bools that leave padding out of the mean, and "class_where", bools that
  broadcast to the logits, the classes that count.

  Args:
    terms: at least one; names differ.
  """
  names = [term.name for term in terms]
  if not names or len(set(names)) < len(names):
    raise UserError(f"an objective needs terms of different names; got {', '.join(names) or 'none'}")

  def objective(student, teacher, batch, *, step, aux, aux_state, key, axis_name):
    total, states, logs = jnp.zeros((), jnp.float32), dict(aux_state), {}
    for index, term in enumerate(terms):
      per_example, after, notes = term.loss(
        student,
        teacher,
        batch,
        aux=aux.get(term.name),
        aux_state=aux_state.get(term.name),
        key=jax.random.fold_in(key, index),
        axis_name=axis_name,
        where=batch.get("class_where"),
      )
      if after is not None:
        states[term.name] = after
      value = batch_mean(per_example, batch.get("where"), axis_name)
      weight = term.weight(step) if callable(term.weight) else term.weight
      total = total.astype(value.dtype) + weight * value
      logs[term.name] = value
      logs |= {f"{term.name}/{k}": batch_mean(v, batch.get("where"), axis_name) for k, v in notes.items()}
    return total, states, logs

  return objective
