"""Erdos-Renyi-Kernel densities (Evci et al., "Rigging the Lottery", arXiv:1911.11134, section 3)."""

import math

from leanax.core import ranges
from sparsity.allocations.base import Densities, Shapes, check_density


def erk(shapes: Shapes, density: float, power: float = 1.0) -> Densities:
  """Returns Erdos-Renyi-Kernel densities.

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
      return Densities({name: 1.0 if name in dense else scale * raw[name] for name in shapes})
    dense |= {name for name in rest if raw[name] == most}
  return Densities(dict.fromkeys(shapes, 1.0))
