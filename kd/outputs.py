"""Networks with several outputs, such as {"scores": ..., "boxes": ...}: which of them a loss or a metric reads."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd import checks
from kd.kinds import Loss, Outputs
from leanax.core import trees
from leanax.core.errors import UserError, unknown


def is_one(logits: Any) -> bool:
  """Whether a network has one output, an array (or a shape), and no tree of them."""
  return hasattr(logits, "shape") and hasattr(logits, "dtype")


def as_outputs(given: Any) -> Outputs:
  """What a network gave: outputs as they are, and logits, or their tree, alone as outputs without activations."""
  return given if isinstance(given, Outputs) else Outputs(given)


def picked(outputs: Outputs, name: str, loss: Loss, where: str, teacher: bool = False) -> Outputs:
  """The outputs as a term reads them: with one output in the place of all.

  Args:
    outputs: of a network.
    name: of the output, or "" for the only one.
    loss: what reads them. One that reads no logits may be given all outputs.
    where: how errors call the term.
    teacher: whether they are a teacher's, whose only output needs no name.

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
  """(batch,) bools: examples in which a teacher's logits hold NaN or +inf, or no class at all that counts.

  A class that is excluded by -inf, or by the mask, is no fault. None where it has several outputs, of which none was
  picked.

  Args:
    teacher: its outputs, as constants.
    class_mask: the classes that count.
  """
  if not is_one(teacher.logits):
    return None
  logits = teacher.logits if teacher.logits.ndim > 1 else teacher.logits[:, None]
  mask = class_mask if class_mask is not None and class_mask.shape[-1] == logits.shape[-1] else None
  mask = checks.class_mask_of("of a teacher", mask, logits.shape)  # one over the batch counts at every position
  if teacher.members is None:
    return _faulty(logits, mask)
  return _faulty(teacher.members, mask if mask is None or mask.ndim < 2 else mask[:, None])


def _faulty(logits: Array, class_mask: Array | None) -> Array:
  """(batch,) bools: where a row holds NaN or +inf, or -inf alone, among the classes that count."""
  shown = logits if class_mask is None else jnp.where(class_mask, logits, -jnp.inf)
  top = jnp.max(shown, axis=-1)
  if class_mask is not None:
    top = jnp.where(jnp.any(class_mask, axis=-1), top, 0.0)
  return jnp.any(~jnp.isfinite(top), axis=tuple(range(1, top.ndim)))


def taps_not_finite(taps: Any, suspicious: Array, axis_name: str | None) -> Array:
  """How many examples have an activation of the teacher that is not finite, float32; it is looked at only on suspicion.

  Args:
    taps: (batch, ...) arrays, the teacher's.
    suspicious: a bool, such as that the loss is not finite: else nothing is read, and the answer is 0.
    axis_name: the device axis, or None.
  """

  def look(taps: Any) -> Array:
    bad = [jnp.any(~jnp.isfinite(x), axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(taps)]
    return jnp.sum(jnp.any(jnp.stack(bad), 0).astype(jnp.float32))

  def trust(taps: Any) -> Array:
    none = jnp.zeros((), jnp.float32)
    return none if axis_name is None else jax.lax.pcast(none, axis_name, to="varying")

  return jax.lax.cond(suspicious, look, trust, taps)
