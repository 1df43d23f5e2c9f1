"""Criteria: scores of the entries, the largest of which are kept, one per file."""

from sparsity.criteria.base import Score, check_score
from sparsity.criteria.fisher import fisher
from sparsity.criteria.magnitude import magnitude
from sparsity.criteria.movement import movement
from sparsity.criteria.random import random
from sparsity.criteria.taylor import taylor

__all__ = ["Score", "check_score", "fisher", "magnitude", "movement", "random", "taylor"]
