"""Erdos-Renyi densities (Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
connectivity inspired by network science", arXiv:1707.04780, equation 3).
"""

import math

from sparsity.allocations.base import Densities, Shapes, shared


def er(shapes: Shapes, density: float) -> Densities:
  """Returns Erdos-Renyi densities.

      d_l = eps * (n_in + n_out) / (n_in n_out)

  n_in and n_out are the last two axes, inputs and outputs of a kernel in flax's Dense and Conv: the other axes of a
  convolution do not count, unlike in `erk`. eps is found as there.

  Args:
    shapes: the leaves' shapes by name.
    density: of all leaves together.

  Returns:
    Densities in (0, 1] by name.
  """
  raw = {name: sum(shape[-2:]) / math.prod(shape[-2:]) for name, shape in shapes.items()}
  return shared("er", shapes, density, raw)
