"""Networks with several outputs, such as {"scores": ..., "boxes": ...}: selects the output of a loss or a metric."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd import checks
from kd.kinds import Loss, Outputs
from leanax.core import trees
from leanax.core.errors import UserError, unknown


def is_one(logits: Any) -> bool:
  """Returns whether a network has one output, an array (or a shape), and not a tree of outputs."""
  return hasattr(logits, "shape") and hasattr(logits, "dtype")


def as_outputs(given: Any) -> Outputs:
  """Returns `Outputs` unchanged, and wraps logits, or a tree of them, as `Outputs` without activations."""
  return given if isinstance(given, Outputs) else Outputs(given)


def picked(outputs: Outputs, name: str, loss: Loss, where: str, teacher: bool = False) -> Outputs:
  """Selects one of a network's outputs for a term.

  Args:
    outputs: of a network.
    name: of the output, or "" for the only one.
    loss: the term's loss. One that reads no logits gets all outputs.
    where: the term's name in error messages.
    teacher: whether the network is a teacher, whose only output needs no name.

  Raises:
    UserError: there is no such output, or there are several and none is named.
  """
  logits = outputs.logits
  if is_one(logits):
    if name and not teacher:
      raise UserError(f"{where} reads the output {name!r}, and the network has one output, an array; expected no name")
    return outputs
  found = trees.named_leaves(logits)
  if not name:
    if "logits" not in loss.reads:
      return outputs
    whose = "teacher" if teacher else "student"
    raise UserError(
      f"{where} reads logits, and the {whose} has several outputs, {', '.join(map(repr, found))}; expected one of them "
      "as the term's 'output'"
    )
  if name not in found:
    raise unknown(f"output of {where}", name, found)
  return outputs._replace(logits=found[name])


def not_finite(teacher: Outputs, class_mask: Array | None) -> Array | None:
  """Returns the examples whose teacher logits hold NaN or +inf, or exclude all valid classes: (batch,) bools.

  Single classes excluded by -inf or by the mask are no error. None for a teacher with several outputs, none selected.

  Args:
    teacher: its outputs, as constants.
    class_mask: the valid classes.
  """
  if not is_one(teacher.logits):
    return None
  logits = teacher.logits if teacher.logits.ndim > 1 else teacher.logits[:, None]
  mask = class_mask if class_mask is not None and class_mask.shape[-1] == logits.shape[-1] else None
  mask = checks.class_mask_of("of a teacher", mask, logits.shape)  # a mask over the batch applies to every position
  if teacher.members is None:
    return _faulty(logits, mask)
  return _faulty(teacher.members, mask if mask is None or mask.ndim < 2 else mask[:, None])


def _faulty(logits: Array, class_mask: Array | None) -> Array:
  """Returns (batch,) bools: where the valid classes hold NaN or +inf, or only -inf."""
  shown = logits if class_mask is None else jnp.where(class_mask, logits, -jnp.inf)
  top = jnp.max(shown, axis=-1)
  if class_mask is not None:
    top = jnp.where(jnp.any(class_mask, axis=-1), top, 0.0)
  return jnp.any(~jnp.isfinite(top), axis=tuple(range(1, top.ndim)))


def taps_not_finite(taps: Any, suspicious: Array, axis_name: str | None) -> Array:
  """Returns the number of examples with a teacher activation that is not finite, float32; counted only on suspicion.

  Args:
    taps: (batch, ...) arrays of the teacher.
    suspicious: a bool, such as whether the loss is not finite; if False, nothing is read and the result is 0.
    axis_name: the device axis, or None.
  """

  def count(taps: Any) -> Array:
    bad = [jnp.any(~jnp.isfinite(x), axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(taps)]
    return jnp.sum(jnp.any(jnp.stack(bad), 0).astype(jnp.float32))

  def zero(taps: Any) -> Array:
    total = jnp.zeros((), jnp.float32)
    return total if axis_name is None else jax.lax.pcast(total, axis_name, to="varying")

  return jax.lax.cond(suspicious, count, zero, taps)
