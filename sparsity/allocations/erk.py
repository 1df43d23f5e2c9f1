"""Erdos-Renyi-Kernel densities (Evci et al., "Rigging the Lottery", arXiv:1911.11134, section 3)."""

import math

from leanax.core import ranges
from sparsity.allocations.base import Densities, Shapes, shared


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
  ranges.check("sparsity.erk: power", power, ranges.NOT_NEGATIVE)
  raw = {name: (sum(shape) / math.prod(shape)) ** power for name, shape in shapes.items()}
  return shared("erk", shapes, density, raw)
