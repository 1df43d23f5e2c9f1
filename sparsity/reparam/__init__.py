"""Weights as functions of what is trained, one reparameterization per file."""

from leanax.graph.kinds import Reparam
from sparsity.reparam.dst import dst
from sparsity.reparam.soft_threshold import soft_threshold

__all__ = ["Reparam", "dst", "soft_threshold"]
