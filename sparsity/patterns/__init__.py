"""Patterns: the places where kept entries may lie, one per file."""

from sparsity.patterns.base import Pattern, check_pattern
from sparsity.patterns.block import block
from sparsity.patterns.channel import channel
from sparsity.patterns.n_m import n_m
from sparsity.patterns.row import row
from sparsity.patterns.unstructured import unstructured

__all__ = ["Pattern", "block", "channel", "check_pattern", "n_m", "row", "unstructured"]
