"""Distillation by the optimizer: it treats the gradient of the teacher's terms apart from the task's."""

from kd.trainers.dot import dot, scale_by_dot, wants_task

__all__ = ["dot", "scale_by_dot", "wants_task"]
