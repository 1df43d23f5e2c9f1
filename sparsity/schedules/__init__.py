"""When masks are made anew, one schedule a file."""

from sparsity.schedules.base import Schedule
from sparsity.schedules.cubic import cubic
from sparsity.schedules.one_shot import one_shot

__all__ = ["Schedule", "cubic", "one_shot"]
