"""Schedules of mask updates, one per file."""

from sparsity.schedules.alternating import alternating
from sparsity.schedules.base import Schedule, check_schedule
from sparsity.schedules.cubic import cubic
from sparsity.schedules.cyclic import cyclic
from sparsity.schedules.linear import linear
from sparsity.schedules.one_shot import one_shot
from sparsity.schedules.periodic import periodic

__all__ = ["Schedule", "alternating", "check_schedule", "cubic", "cyclic", "linear", "one_shot", "periodic"]
