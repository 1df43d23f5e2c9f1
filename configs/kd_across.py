"""Across tasks: a net trained on clothes is the teacher of one that learns digits from a hundred labels.

    python -m scripts.compress --config=configs/kd_across.py:teacher --workdir=runs/kd_across_teacher
    python -m scripts.compress --config=configs/kd_across.py:student --workdir=runs/kd_across

The teacher is the file that the first command leaves: its trunk, under a head of other classes. So the student learns
from its activations only, and for two thirds of the stage: then its labels are all that counts.
"""

from ml_collections import ConfigDict

TEACHER = "runs/kd_across_teacher/models/teacher.safetensors"
MODEL = {"name": "zoo.convnet:ConvNet", "kwargs": {"widths": (16, 32), "dense": (64,)}}
MAP = "Conv_1/kernel:out"


def get_config(argument: str = "student") -> ConfigDict:
  if argument not in ("teacher", "student"):
    raise ValueError(f"unknown argument {argument!r}; expected one of teacher, student")
  few = {"epochs": 40, "batch_size": 50, "optimizer": {"learning_rate": 2e-3}, "examples": {"labelled": 100}}
  few["examples"]["unlabelled"] = False
  hint = {"weight": {"name": "switch", "low": 100.0, "high": 0.0, "at": 0.67}, "student": MAP, "teacher": MAP}
  stages = {
    "teacher": {"teacher": {"model": "teacher", "epochs": 10, "optimizer": {"learning_rate": 2e-3}}},
    "student": {
      "alone": few,
      "fitnet": {**few, "teacher": TEACHER, "objective": {"hard_labels": {"weight": 1.0}, "fitnet": hint}},
    },
  }[argument]
  return ConfigDict({
    "name": f"across tasks ({argument})",
    "data": {"name": "tfds:fashion_mnist" if argument == "teacher" else "tfds:mnist", "limit": 10_000},
    "models": {argument: MODEL},
    "stages": stages,
    "run": tuple(stages),
  })  # fmt: skip
