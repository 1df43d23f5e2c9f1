"""How a student is trained where that is more than a loss: optimizers that know which gradient a teacher gave."""

from kd.trainers.dot import dot, scale_by_dot, wants_task

__all__ = ["dot", "scale_by_dot", "wants_task"]
