"""The share of its entries that each layer keeps.

An allocation gives each leaf its density, from the shapes and the overall density; or it ranks the entries of all
layers as one, by scores that are comparable once they are normalised within each layer. "global" is the second kind
without a normalisation.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NewType

import jax
import numpy as np

from leanax.core import ranges

Shapes = Mapping[str, tuple[int, ...]]
Densities = NewType("Densities", dict[str, float])
"""The kind of an allocation: a function `(shapes, density, ...) -> Densities`, a density in (0, 1] by name."""
Normalised = NewType("Normalised", jax.Array)
"""The kind of an allocation that ranks all layers as one: a function from scores, (layers, entries) floats, of which
the largest are kept, to scores in the same order within each layer, which do not depend on a layer's scale."""
DENSITY = ranges.Range("a density, the part that is kept, above 0 and at most 1", lambda x: 0 < x <= 1)


def count(entries: int, density: float) -> int:
  """Returns the number of `entries` that are kept at `density`: the nearest int, halves to even, and at least one."""
  ranges.check("sparsity.count: entries", entries, ranges.whole(0))
  check_density("sparsity.count: density", density)
  return int(counts(entries, [density])[0])


def counts(entries: int, densities: Sequence[float]) -> np.ndarray:
  """Returns `count` at each of many densities, as int32."""
  return np.maximum(np.rint(entries * np.asarray(densities, np.float64)), 1).astype(np.int32)


def shared(method: str, shapes: Shapes, density: float, raw: Mapping[str, float]) -> Densities:
  """Returns densities in proportion to `raw`, which together keep what the uniform allocation keeps.

  That is n_l - floor((1 - density) n_l) of each layer. While the largest density is above 1, the layers that share
  that maximum become dense and the others make up for it.

  Args:
    method: the name of the allocation, for errors.
    shapes: the leaves' shapes by name.
    density: of all leaves together.
    raw: positive numbers by name.

  Raises:
    UserError: a density outside (0, 1].
  """
  check_density(f"sparsity.{method}: density", density)
  sizes = {name: math.prod(shape) for name, shape in shapes.items()}
  budget = sum(n - math.floor((1 - density) * n) for n in sizes.values())
  dense: set[str] = set()
  while rest := set(shapes) - dense:
    scale = (budget - sum(sizes[name] for name in dense)) / sum(raw[name] * sizes[name] for name in rest)
    most = max(raw[name] for name in rest)
    if most * scale <= 1:
      return Densities({name: 1.0 if name in dense else scale * raw[name] for name in shapes})
    dense |= {name for name in rest if raw[name] == most}
  return Densities(dict.fromkeys(shapes, 1.0))


def check_density(what: str, density: float) -> float:
  """Returns `density` as a float.

  Raises:
    UserError: it is not a number in (0, 1].
  """
  ranges.check(what, density, DENSITY)
  return float(density)
