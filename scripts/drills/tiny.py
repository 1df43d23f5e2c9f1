"""The run of the drills: two small stages with files and a report, in seconds."""

from ml_collections import ConfigDict

STAGE = {"epochs": 12, "batch_size": 32, "optimizer": {"learning_rate": 0.05}}
SYNTHETIC = {"shape": (6, 6, 1), "classes": 4, "train": 128, "validation": 32, "test": 64, "noise": 40, "shift": 0}


def get_config() -> ConfigDict:
  return ConfigDict({
    "name": "drill",
    "data": {"name": "synthetic", "kwargs": SYNTHETIC},
    "models": {"student": {"name": "zoo.mlp:MLP", "kwargs": {"widths": (16,), "classes": 4}}},
    "stages": {
      "float": STAGE,
      "int8": {
        **STAGE,
        "start": "float",
        "teacher": "float",
        "objective": {"hard_labels": {"weight": 0.5}, "hinton": {"weight": 0.5, "temperature": 4.0}},
        "quant": {"rules": (("*", "w8a8 learned"),), "calibration_batches": 2},
      },
    },
    "run": ("float", "int8"),
    "evaluations": 7,  # a line every six steps
    "checkpoint_every": 4,
    "latency_runs": 5,
    "layer_seconds": 0.0,
  })  # fmt: skip
