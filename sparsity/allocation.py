"""How a density is shared out over layers.

An allocation gives each leaf its density from the shapes and the density that all of them together shall have. "global"
is no allocation of this kind: there one threshold serves all layers, and `sparsity.magnitude` ranks them as one.
"""

import math
from collections.abc import Mapping

from core.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]


def count(entries: int, density: float) -> int:
  """How many of `entries` are kept at `density`: the nearest int, halves to even, and at least one."""
  return max(1, round(entries * density))


def uniform(shapes: Shapes, density: float) -> dict[str, float]:
  """The same density everywhere. No paper."""
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
  """`density` again.

  Raises:
    UserError: it is outside (0, 1].
  """
  if not 0 < density <= 1:
    raise UserError(f"{what} is {density}, but a density (the part that is kept) lies in (0, 1]")
  return float(density)
