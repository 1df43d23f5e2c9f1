"""The share of its entries that each layer keeps.

An allocation gives each leaf its density, from the shapes and the overall density. "global"
is no allocation of this kind: there one threshold serves all layers, and `sparsity.prune` ranks them as one.
"""

from collections.abc import Mapping, Sequence
from typing import NewType

import numpy as np

from leanax.core import ranges

Shapes = Mapping[str, tuple[int, ...]]
Densities = NewType("Densities", dict[str, float])
"""The kind of an allocation: a function `(shapes, density, ...) -> Densities`, a density in (0, 1] by name."""
DENSITY = ranges.Range("a density, the part that is kept, above 0 and at most 1", lambda x: 0 < x <= 1)


def count(entries: int, density: float) -> int:
  """Returns the number of `entries` that are kept at `density`: the nearest int, halves to even, and at least one."""
  ranges.check("sparsity.count: entries", entries, ranges.whole(0))
  check_density("sparsity.count: density", density)
  return int(counts(entries, [density])[0])


def counts(entries: int, densities: Sequence[float]) -> np.ndarray:
  """Returns `count` at each of many densities, as int32."""
  return np.maximum(np.rint(entries * np.asarray(densities, np.float64)), 1).astype(np.int32)


def check_density(what: str, density: float) -> float:
  """Returns `density` as a float.

  Raises:
    UserError: it is not a number in (0, 1].
  """
  ranges.check(what, density, DENSITY)
  return float(density)
