"""Allocations: a density shared out over layers, one per file."""

from sparsity.allocations.base import Densities, Shapes, check_density, count, counts
from sparsity.allocations.erk import erk
from sparsity.allocations.uniform import uniform

__all__ = ["Densities", "Shapes", "check_density", "count", "counts", "erk", "uniform"]
