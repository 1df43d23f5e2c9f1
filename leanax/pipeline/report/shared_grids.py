"""Tensors of very different ranges on one grid: what is joined is moved as codes in a file, and so has one grid.

The range of a tensor is what the float model makes there on some examples, with 0. A tensor whose range is a share r of
the widest one on its grid uses about that share of the levels: it has log2(1 / r) bits fewer than a grid of its own.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import quant
from leanax import graph
from leanax.core.errors import UserError
from leanax.pipeline import trained as models
from leanax.pipeline.trained import Trained

MOST_BITS = 2.0  # fewer than a grid of its own that a tensor may have before it is named


def narrow(trained: Trained, inputs: np.ndarray) -> list[dict[str, Any]]:
  """Returns the tensors that have few of their grid's levels.

  Args:
    trained: a quantized model.
    inputs: (N, ...) preprocessed examples.

  Returns:
    [{"tensor", "with": the others on its grid, "bits": that it has fewer}].
  """
  groups = quant.shared_grids(models.net(trained))
  plain = models.in_float(trained)
  fn, names = models.functions(plain.recipe).fn, [name for group in groups for name in group]
  try:
    _, made = jax.jit(graph.taps(fn, names))(plain.variables, inputs) if names else (None, {})
  except UserError:  # one cannot be read, such as within a loop
    return []
  return of_ranges(groups, {name: width(made[name]) for name in names})


def width(numbers: Any) -> float:
  """Returns the width of a range: that of the numbers and 0, which every grid has."""
  return float(np.ptp(np.append(numbers, 0.0)))


def of_ranges(groups: Sequence[Sequence[str]], widths: Mapping[str, float]) -> list[dict[str, Any]]:
  """Returns what `narrow` does, of groups of tensors that share a grid and the widths of their ranges."""
  found = []
  for group in groups:
    widest = max(widths[name] for name in group)
    for name in group:
      bits = math.log2(widest / widths[name]) if widths[name] > 0 else 0.0  # zeros alone lose nothing
      if bits > MOST_BITS:
        found.append({"tensor": name, "with": [other for other in group if other != name], "bits": bits})
  return found
