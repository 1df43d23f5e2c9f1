"""Weights as functions of what is trained, one reparameterization per file."""

from leanax.graph.kinds import Reparam
from sparsity.reparam.soft_threshold import soft_threshold

__all__ = ["Reparam", "soft_threshold"]
