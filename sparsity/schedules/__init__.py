"""Schedules of mask updates, one per file."""

from sparsity.schedules.base import Schedule, check_schedule
from sparsity.schedules.cubic import cubic
from sparsity.schedules.one_shot import one_shot
from sparsity.schedules.periodic import periodic

__all__ = ["Schedule", "check_schedule", "cubic", "one_shot", "periodic"]
