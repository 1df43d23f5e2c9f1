"""Allocations: a density shared out over layers, one per file."""

from sparsity.allocations.base import Densities, Normalised, Shapes, check_density, count, counts
from sparsity.allocations.er import er
from sparsity.allocations.erk import erk
from sparsity.allocations.global_normalised import global_normalised
from sparsity.allocations.lamp import lamp
from sparsity.allocations.uniform import uniform

__all__ = [
  "Densities",
  "Normalised",
  "Shapes",
  "check_density",
  "count",
  "counts",
  "er",
  "erk",
  "global_normalised",
  "lamp",
  "uniform",
]
