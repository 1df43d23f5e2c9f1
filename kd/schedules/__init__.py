"""Numbers that change during training, such as a temperature or the weight of a term; one file per schedule.

Each is a pure function of the number of updates. In a config, `start`, `end` and `at` are fractions of the stage.
"""

from kd.schedules.cosine import cosine
from kd.schedules.linear import linear
from kd.schedules.switch import switch

__all__ = ["cosine", "linear", "switch"]
