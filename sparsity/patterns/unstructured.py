"""Entries anywhere in a layer, each by itself. No paper."""

import math

from sparsity.patterns.base import Pattern


def unstructured() -> Pattern:
  """Ranks all entries of a layer as one."""
  return Pattern(
    units=lambda name, shape: math.prod(shape),
    split=lambda name, scores: scores.reshape(len(scores), -1),
    join=lambda name, mask, shape: mask.reshape(-1, *shape),
  )
