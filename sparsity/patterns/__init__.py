"""Patterns: the places where kept entries may lie, one per file."""

from sparsity.patterns.base import Pattern, check_pattern
from sparsity.patterns.n_m import n_m
from sparsity.patterns.unstructured import unstructured

__all__ = ["Pattern", "check_pattern", "n_m", "unstructured"]
