"""What is kept: criteria, one a file."""

from sparsity.criteria.base import Score, check_score
from sparsity.criteria.magnitude import magnitude

__all__ = ["Score", "check_score", "magnitude"]
