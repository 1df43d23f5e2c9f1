"""The logits of a model for a whole split, and measures of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

import kd
from leanax.core import ranges
from leanax.core.errors import UserError

Logits = Float[np.ndarray, "examples *positions classes"] | Float[Array, "examples *positions classes"]
Labels = Int[np.ndarray, "examples *positions"] | Int[Array, "examples *positions"]


def logits(
  fn: Callable[[Any, Array], Any], variables: Any, images: np.ndarray | Array, *, batch_size: int = 512
) -> Any:
  """Returns the logits of all examples, in batches of one size; the last is padded, and the padding is cut off.

  Args:
    fn: `fn(variables, images) -> (batch, classes)`, or a tree of outputs, in evaluation mode. The same function object
      compiles once.
    variables: the first argument of `fn`.
    images: (examples, ...), at least one.
    batch_size: the most examples at once.

  Returns:
    (examples, classes) on the host, or a tree of outputs (examples, ...).
  """
  ranges.check("logits: batch_size", batch_size, ranges.whole(1))
  total = len(images)
  if total == 0:
    raise UserError("there are no images to evaluate")
  size = min(batch_size, total)
  run = jax.jit(fn)
  parts = []
  for start in range(0, total, size):
    batch = images[start : start + size]
    missing = size - len(batch)
    if missing:
      batch = np.concatenate([np.asarray(batch), np.asarray(images[:missing])])
    parts.append(run(variables, batch))
    if len(parts) >= 8:  # bounds what is unfinished
      jax.block_until_ready(parts[-8])
  return jax.tree.map(lambda *each: np.concatenate([np.asarray(part) for part in each])[:total], *parts)


def accuracy(logits: Logits, labels: Labels, ignore_label: int | None = None) -> float:
  """Returns the share of examples, or positions, whose largest logit is their label's.

  Args:
    logits: (examples, *positions, classes); of one class, 1 where the logit is above 0 and else 0.
    labels: (examples, *positions) whole numbers. Where one is below 0 or the ignored one, there is no label, and
      nothing is counted.
    ignore_label: a label that does not count.

  Raises:
    UserError: the labels are not of these shapes, one names no class, or none counts; or a logit is NaN, of which no
      class is the largest.
  """
  logits, labels, known = _labelled(logits, labels, ignore_label)
  return float(np.mean(np.argmax(logits, -1)[known] == labels[known]))


def _labelled(logits: Any, labels: Any, ignored: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  (logits,), labels = _distributions(logits), np.asarray(labels)
  if labels.shape != logits.shape[:-1] or not np.issubdtype(labels.dtype, np.integer):
    raise UserError(
      f"labels are {labels.dtype} of shape {labels.shape} for logits of shape {logits.shape}; expected whole numbers "
      f"of shape {logits.shape[:-1]}"
    )
  known = labels >= 0 if ignored is None else (labels >= 0) & (labels != ignored)
  if not known.any():
    raise UserError("there is no label to compare with: expected one of 0 or more")
  wrong = known & (labels >= logits.shape[-1])
  if wrong.any():
    raise UserError(
      f"labels are from 0 to {logits.shape[-1] - 1} for logits of {logits.shape[-1]} classes; got "
      f"{kd.checks.some(labels, wrong)}; a label that says that there is none is given as 'ignore_label'"
    )
  return logits, labels, known


def agreement(logits: Logits, others: Logits, among: int = 1) -> float:
  """Returns the share of examples, or positions, whose class is among the `among` most likely ones of another model.

  Raises:
    UserError: the logits are of two shapes, there are none, or one is NaN; or `among` is not a number of classes.
  """
  ranges.check("agreement: among", among, ranges.whole(1))
  logits, others = _distributions(logits, others)
  best = np.argsort(-others, -1, kind="stable")[..., :among]
  return float(np.mean(np.any(best == np.argmax(logits, -1)[..., None], -1)))


def divergence(logits: Logits, others: Logits) -> float:
  """Returns the mean of KL(others || logits) over the examples, or positions, in nats, at temperature 1.

  A class that `others` exclude by a logit of -inf adds nothing. Errors as of `agreement`; +inf, or -inf of all classes,
  has no softmax.
  """
  log_q, log_p = (_log_softmax(np.asarray(x, np.float64)) for x in _distributions(logits, others))
  used = log_p > -np.inf
  gaps = np.where(used, log_p, 0.0) - np.where(used, log_q, 0.0)
  return float(np.mean(np.sum(np.exp(log_p) * gaps, -1)))


def calibration_error(logits: Logits, labels: Labels, bins: int = 15, ignore_label: int | None = None) -> float:
  """Returns the expected calibration error: how far confidence and accuracy differ, in equal bins of the confidence.

  C. Guo et al., "On Calibration of Modern Neural Networks" (arXiv:1706.04599), equation 3. Arguments and errors as of
  `accuracy`.
  """
  ranges.check("calibration_error: bins", bins, ranges.whole(1))
  logits, labels, known = _labelled(logits, labels, ignore_label)
  p = np.exp(_log_softmax(np.asarray(logits[known], np.float64)))
  confidence, right = p.max(-1), p.argmax(-1) == labels[known]
  place = np.minimum((confidence * bins).astype(int), bins - 1)
  gaps = [abs(np.sum(confidence[place == k] - right[place == k])) for k in range(bins)]
  return float(np.sum(gaps) / len(right))


def _distributions(*given: Any) -> list[np.ndarray]:
  """Returns logits of one shape; a single logit z is the pair (0, z) of no and yes: sigmoid(z) is their softmax."""
  found = [kd.checks.array(x) for x in given]
  shape = found[0].shape
  if any(x.shape != shape for x in found):
    raise UserError(f"logits of {' and '.join(str(x.shape) for x in found)} are compared; expected one shape")
  if any(not jnp.issubdtype(x.dtype, np.number) for x in found):
    raise UserError(f"logits are {' and '.join(type(x).__name__ for x in given)}; expected arrays of numbers")
  if len(shape) < 2 or 0 in shape:
    raise UserError(f"logits are of shape {shape}; expected (examples, *positions, classes), and one or more of each")
  if any(np.isnan(x).any() for x in found):
    raise UserError("logits are NaN, of which no class is the largest; expected numbers")
  return [np.concatenate([np.zeros_like(x), x], -1) for x in found] if shape[-1:] == (1,) else found


def _log_softmax(x: np.ndarray) -> np.ndarray:
  top = x.max(-1, keepdims=True)
  bad = ~np.isfinite(top)
  if bad.any():
    raise UserError(
      f"logits are infinite, or -inf of all classes, in {bad.sum()} of {bad.size} places; expected numbers"
    )
  x = x - top
  return x - np.log(np.exp(x).sum(-1, keepdims=True))
