"""Every pixel of a road named by a small int8 network that learned from one of 13 times its products.

    python -m scripts.compress --config=examples/driving/config.py --workdir=runs/driving

Run it from the checkout's root, which the import paths below start from. README.md beside this file has the results.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict


class Preset(NamedTuple):
  """Sizes of the job: (height, width) of scenes, their numbers, epochs of teacher and students, and both networks."""

  size: tuple[int, int]
  counts: tuple[int, int, int]
  epochs: tuple[int, int]
  batch_size: int
  teacher: dict[str, Any]
  student: dict[str, Any]


PRESETS = {
  "cpu": Preset(  # minutes on two cores
    (160, 320),
    (240, 24, 64),
    (8, 8),
    8,
    {"stem": 16, "widths": (32, 48, 64), "blocks": (1, 2, 2), "decoder": 32},
    {"stem": 8, "widths": (12, 16, 24), "blocks": (1, 2, 2), "decoder": 16},
  ),
  "tiny": Preset(  # seconds; it shows that all parts fit, and learns little
    (16, 32),
    (8, 4, 6),
    (1, 1),
    4,
    {"stem": 4, "widths": (8,), "blocks": (1,), "decoder": 8},
    {"stem": 4, "widths": (4,), "blocks": (1,), "decoder": 4},
  ),
}

DISTIL = {"hard_labels": {"weight": 0.5}, "hinton": {"weight": 0.5, "temperature": 2.0}}


def get_config(argument: str = "cpu") -> ConfigDict:
  """Returns the config of a preset, "cpu" or "tiny"."""
  if argument not in PRESETS:
    raise ValueError(f"unknown preset {argument!r} of examples/driving; expected one of {', '.join(PRESETS)}")
  preset = PRESETS[argument]
  student = {
    "epochs": preset.epochs[1],
    "batch_size": preset.batch_size,
    "augment": {"flip": True},
    "optimizer": {"learning_rate": 1e-2},
  }
  return ConfigDict({
    "name": f"driving ({argument})",
    "data": {"name": "examples.driving.scenes:load", "kwargs": {"size": preset.size, "counts": preset.counts}},
    "metrics": ("mean_iou", "accuracy"),
    "models": {
      "teacher": {"name": "examples.driving.models:Net", "kwargs": {"small": False, **preset.teacher}},
      "student": {"name": "examples.driving.models:Net", "kwargs": {"small": True, **preset.student}},
    },
    "stages": {
      "teacher": {
        **student,
        "model": "teacher",
        "epochs": preset.epochs[0],
        "optimizer": {"learning_rate": 3e-3},
      },
      "alone": student,  # the student without a teacher
      "distilled": {**student, "teacher": "teacher", "objective": DISTIL},
      "int8": {
        "kind": "post_training",
        "start": "distilled",
        "batch_size": preset.batch_size,
        "quant": {"rules": (("*", "w8a8"),), "calibration_batches": 8},
      },
    },
    "run": ("teacher", "alone", "distilled", "int8"),
    "evaluations": 4,
    "latency_runs": 40,
    "gradient_norms": False,
  })  # fmt: skip
