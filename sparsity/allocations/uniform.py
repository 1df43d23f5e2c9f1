"""The same density for every layer. No paper."""

from sparsity.allocations.base import Densities, Shapes, check_density


def uniform(shapes: Shapes, density: float) -> Densities:
  """Returns `density` for each name of `shapes`."""
  check_density("sparsity.uniform: density", density)
  return Densities(dict.fromkeys(shapes, density))
