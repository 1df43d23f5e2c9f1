"""What a model says of a whole split, and numbers about it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from core import trees
from core.errors import UserError

Logits = Float[np.ndarray, "examples *positions classes"] | Float[Array, "examples *positions classes"]
Labels = Int[np.ndarray, "examples *positions"] | Int[Array, "examples *positions"]


def logits(
  fn: Callable[[Any, Array], Array], variables: Any, images: np.ndarray | Array, *, batch_size: int = 512
) -> np.ndarray:
  """The logits of all examples, in batches of one size; the last is filled up and its filling cut off.

  Args:
    fn: `fn(variables, images) -> (batch, classes)`, in evaluation mode. The same function object compiles once.
    variables: its first argument.
    images: (examples, ...), at least one.
    batch_size: at most so many at once.

  Returns:
    (examples, classes) on the host.
  """
  total = len(images)
  if total == 0:
    raise UserError("there are no images to evaluate")
  size = min(batch_size, total)
  run = jax.jit(fn)
  parts = []
  for begin in range(0, total, size):
    batch = images[begin : begin + size]
    missing = size - len(batch)
    if missing:
      batch = np.concatenate([np.asarray(batch), np.asarray(images[:missing])])
    parts.append(run(variables, batch))
    if not hasattr(parts[-1], "shape"):
      names = ", ".join(map(repr, trees.named_leaves(parts[-1])))
      raise UserError(f"the model has several outputs, {names}; expected a function that gives one of them")
    if len(parts) >= 8:  # bounds what is unfinished
      parts[-8].block_until_ready()
  return np.concatenate([np.asarray(part) for part in parts])[:total]


def accuracy(logits: Logits, labels: Labels, ignore_label: int | None = None) -> float:
  """The share of examples, or positions, whose largest logit is their label's.

  Args:
    logits: (examples, *positions, classes).
    labels: (examples, *positions) whole numbers. Where one is below 0 or the ignored one, there is no label, and
      nothing is counted.
    ignore_label: a label that does not count.

  Raises:
    UserError: the labels are not of these shapes, or none counts.
  """
  logits, labels, known = _labelled(logits, labels, ignore_label)
  return float(np.mean(np.argmax(logits, -1)[known] == labels[known]))


def _labelled(logits: Any, labels: Any, ignored: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  logits, labels = np.asarray(logits), np.asarray(labels)
  if labels.shape != logits.shape[:-1] or not np.issubdtype(labels.dtype, np.integer):
    raise UserError(
      f"labels are {labels.dtype} of shape {labels.shape} for logits of shape {logits.shape}; expected whole numbers "
      f"of shape {logits.shape[:-1]}"
    )
  known = labels >= 0 if ignored is None else (labels >= 0) & (labels != ignored)
  if not known.any():
    raise UserError("there is no label to compare with: expected one of 0 or more")
  return logits, labels, known


def agreement(logits: Logits, others: Logits, among: int = 1) -> float:
  """The share of examples whose class, as a model names it, is among the `among` most likely ones of another model."""
  best = np.argsort(-np.asarray(others), -1, kind="stable")[:, :among]
  return float(np.mean(np.any(best == np.argmax(np.asarray(logits), -1)[:, None], -1)))


def divergence(logits: Logits, others: Logits) -> float:
  """The mean of KL(others || logits) over the examples, in nats, at temperature 1."""
  log_p, log_q = (_log_softmax(np.asarray(x, np.float64)) for x in (others, logits))
  return float(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), -1)))


def calibration_error(logits: Logits, labels: Labels, bins: int = 15, ignore_label: int | None = None) -> float:
  """Expected calibration error: how far confidence and accuracy differ, over equal bins of the confidence.

  C. Guo et al., "On Calibration of Modern Neural Networks" (arXiv:1706.04599), equation 3. Arguments and errors as of
  `accuracy`.
  """
  logits, labels, known = _labelled(logits, labels, ignore_label)
  p = np.exp(_log_softmax(np.asarray(logits[known], np.float64)))
  confidence, right = p.max(-1), p.argmax(-1) == labels[known]
  place = np.minimum((confidence * bins).astype(int), bins - 1)
  gaps = [abs(np.sum(confidence[place == k] - right[place == k])) for k in range(bins)]
  return float(np.sum(gaps) / len(right))


def _log_softmax(x: np.ndarray) -> np.ndarray:
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))
