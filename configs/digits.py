"""Handwritten digits, 8x8: a teacher, and a student of a ninth of its size, pruned and in eight bits.

    python -m scripts.compress --config=configs/digits.py --workdir=runs/digits

It takes under two minutes. Schedules and widths were chosen on the validation split;
`python -m scripts.reproduce --table=digits` repeats the job over five seeds.
"""

from ml_collections import ConfigDict

DISTIL = {"hard_labels": {"weight": 0.3}, "hinton": {"weight": 0.7, "temperature": 4.0}}


def get_config() -> ConfigDict:
  return ConfigDict({
    "name": "digits",
    "data": {"name": "digits"},
    "models": {
      "teacher": {"name": "zoo.convnet:ConvNet", "kwargs": {"widths": (48, 96), "dense": (192,)}},
      "student": {"name": "zoo.convnet:ConvNet", "kwargs": {"widths": (16, 32), "dense": (64,)}},
    },
    "stages": {
      "teacher": {
        "model": "teacher",
        "epochs": 40,
        "optimizer": {"learning_rate": 2e-3, "warmup_steps": 20},
      },
      "alone": {  # the student without a teacher, for as many epochs as all the stages below together
        "epochs": 240,
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 20},
      },
      "distilled": {
        "teacher": "teacher",
        "epochs": 100,
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 20},
        "objective": DISTIL,
      },
      "pruned": {
        "start": "distilled",
        "teacher": "teacher",
        "epochs": 100,
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 20},
        "objective": DISTIL,
        "sparsity": {
          "name": "magnitude",
          "density": 0.4,
          "schedule": {"name": "cubic", "start": 0.2, "end": 0.7, "every": 17},
        },
      },
      "int8": {
        "start": "pruned",
        "teacher": "teacher",
        "epochs": 40,
        "optimizer": {"learning_rate": 5e-4, "warmup_steps": 20},
        "objective": DISTIL,
        "sparsity": {"name": "hold"},
        "quant": {"rules": (("*", "w8a8 learned"),)},
      },
    },
    "run": ("teacher", "alone", "distilled", "pruned", "int8"),
  })  # fmt: skip
