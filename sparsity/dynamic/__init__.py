"""Masks that move while a sparse network trains, one method a file."""

from sparsity.dynamic.base import dynamic
from sparsity.dynamic.set import set

__all__ = ["dynamic", "set"]
