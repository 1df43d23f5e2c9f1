"""Metrics of a training step that are no loss: means that are divided once all their parts are added."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

import kd
from kd.counting import counted, fitted
from kd.objective import Objective, Weighted
from kd.outputs import is_one, picked

Metrics = dict[str, Array]


def accuracy_of(objective: Objective, student: kd.Outputs, batch: Mapping[str, Any]) -> dict[str, tuple[Array, Array]]:
  """Returns `accuracy` of the output that an objective names, or of the only one."""
  if not isinstance(objective, Weighted):
    return accuracy(student.logits, batch)
  skipped = [term.ignore_label for term in objective.terms if term.ignore_label is not None]
  named = objective.output and not is_one(student.logits)
  main = picked(student, objective.output, objective.terms[0].loss, "the objective") if named else student
  if isinstance(labels := batch.get("label"), Mapping):
    batch = {**batch, "label": labels.get(objective.output)}
  return accuracy(main.logits, batch, skipped[0] if skipped else None)


def accuracy(logits: Any, batch: Mapping[str, Any], ignored: int | None = None) -> dict[str, tuple[Array, Array]]:
  """Returns how many labels are the class with the largest logit, and how many labels there are.

  One logit, or labels of the logits' own shape, say yes or no: a logit above 0 is yes.

  Args:
    logits: (batch, *positions, classes).
    batch: with "label", of whole numbers, (batch, *positions) or as the logits.
    ignored: a label that does not count.

  Returns:
    {"accuracy": (right, labelled)}, to be divided by `divided`; {} where the labels are no classes of these outputs.
  """
  label = batch.get("label")
  if label is None or not is_one(logits) or not (label.dtype == bool or jnp.issubdtype(label.dtype, jnp.integer)):
    return {}
  given = batch.get("class_mask")
  valid = counted(batch, "labelled", ignored)
  assert valid is not None  # there are labels
  if label.shape == logits.shape or (label.shape, 1) == (logits.shape[:-1], logits.shape[-1]):
    right = (logits.reshape(label.shape) > 0) == (kd.checks.countable(label) > 0)
    known = kd.checks.class_mask_of("accuracy", given, label.shape) if label.shape == logits.shape else None
    valid = valid if known is None else valid & known  # which outputs have a label
  elif label.shape == logits.shape[:-1]:
    mask = kd.checks.class_mask_of("accuracy", given, logits.shape)
    shown = logits if mask is None else jnp.where(mask, logits, -jnp.inf)
    right = jnp.argmax(shown, -1).astype(jnp.int32) == label.astype(jnp.int32)
  else:
    return {}
  known = fitted(valid, right.shape)
  return {"accuracy": (jnp.sum((right & known).astype(jnp.float32)), jnp.sum(known.astype(jnp.float32)))}


def divided(metrics: Mapping[str, Any]) -> Metrics:
  """Returns the metrics with each pair (sum, count) as its ratio; 0 where nothing counts."""

  def ratio(total: Array, count: Array) -> Array:
    return total / jnp.where(count > 0, count, 1.0)

  return {name: ratio(*value) if isinstance(value, tuple) else value for name, value in metrics.items()}
