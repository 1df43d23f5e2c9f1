"""How a density is shared out over layers.

An allocation gives each leaf its density from the shapes and the density that all of them together shall have. "global"
is no allocation of this kind: there one threshold serves all layers, and `sparsity.magnitude` ranks them as one.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from leanax.core import ranges

Shapes = Mapping[str, tuple[int, ...]]
DENSITY = ranges.Range("a density, the part that is kept, above 0 and at most 1", lambda x: 0 < x <= 1)


def count(entries: int, density: float) -> int:
  """How many of `entries` are kept at `density`: the nearest int, halves to even, and at least one."""
  ranges.check("sparsity.count: entries", entries, ranges.whole(0))
  check_density("sparsity.count: density", density)
  return int(counts(entries, [density])[0])


def counts(entries: int, densities: Sequence[float]) -> np.ndarray:
  """`count` at each of many densities, as int32."""
  return np.maximum(np.rint(entries * np.asarray(densities, np.float64)), 1).astype(np.int32)


def uniform(shapes: Shapes, density: float) -> dict[str, float]:
  """The same density everywhere. No paper."""
  check_density("sparsity.uniform: density", density)
  return dict.fromkeys(shapes, density)


def erk(shapes: Shapes, density: float, power: float = 1.0) -> dict[str, float]:
  """Erdos-Renyi-Kernel densities (Evci et al., "Rigging the Lottery", arXiv:1911.11134, section 3).

      d_l = eps * (sum of l's axes / product of l's axes) ^ power

  eps makes the kept entries sum to those of the uniform allocation, n_l - floor((1 - density) n_l) each. While the
  largest d_l is above 1, the layers that share that maximum become dense and the others make up for it.

  Args:
    shapes: the leaves' shapes by name, all axes counted (height, width, in, out).
    density: of all leaves together.
    power: 1 for the paper's; 0 is uniform.

  Returns:
    Densities in (0, 1] by name.
  """
  check_density("sparsity.erk: density", density)
  ranges.check("sparsity.erk: power", power, ranges.NOT_NEGATIVE)
  sizes = {name: math.prod(shape) for name, shape in shapes.items()}
  raw = {name: (sum(shape) / sizes[name]) ** power for name, shape in shapes.items()}
  budget = sum(n - math.floor((1 - density) * n) for n in sizes.values())
  dense: set[str] = set()
  while rest := set(shapes) - dense:
    scale = (budget - sum(sizes[name] for name in dense)) / sum(raw[name] * sizes[name] for name in rest)
    most = max(raw[name] for name in rest)
    if most * scale <= 1:
      return {name: 1.0 if name in dense else scale * raw[name] for name in shapes}
    dense |= {name for name in rest if raw[name] == most}
  return dict.fromkeys(shapes, 1.0)


def check_density(what: str, density: float) -> float:
  """`density` as a float.

  Raises:
    UserError: it is no number in (0, 1].
  """
  ranges.check(what, density, DENSITY)
  return float(density)
