"""What a model says of a whole split, and two numbers about it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from core.errors import UserError

Logits = Float[np.ndarray, "examples classes"] | Float[Array, "examples classes"]


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
    if len(parts) >= 8:  # bounds what is unfinished
      parts[-8].block_until_ready()
  return np.concatenate([np.asarray(part) for part in parts])[:total]


def accuracy(logits: Logits, labels: Int[np.ndarray, " examples"] | Int[Array, " examples"]) -> float:
  """The share of examples whose largest logit is their label's."""
  return float(np.mean(np.argmax(np.asarray(logits), -1) == np.asarray(labels)))


def agreement(logits: Logits, others: Logits) -> float:
  """The share of examples for which two models name the same class."""
  return float(np.mean(np.argmax(np.asarray(logits), -1) == np.argmax(np.asarray(others), -1)))
