"""Experiments of the recorder: a net with batch norm under distillation, and one of nnx."""

from ml_collections import ConfigDict

STAGE = {"epochs": 1, "batch_size": 64, "optimizer": {"learning_rate": 2e-3, "warmup_steps": 5}}
DISTIL = {"hard_labels": {"weight": 0.3}, "hinton": {"weight": 0.7, "temperature": 4.0}}
BATCH_NORM = {"name": "zoo.resnet:ResNet", "kwargs": {"blocks": (1, 1), "widths": (8, 16)}}
NNX = {"name": "zoo.mlp_nnx:MLP", "kwargs": {"features": 64, "widths": (32, 16)}}


def get_config(argument: str) -> ConfigDict:
  net = {"batch_norm": BATCH_NORM, "nnx": NNX}[argument]
  return ConfigDict({
    "name": f"recorded, {argument}",
    "data": {"name": "digits"},
    "models": {"teacher": net, "student": net},
    "stages": {
      "teacher": {**STAGE, "model": "teacher", "batch_size": 32, "optimizer": {"learning_rate": 1e-2, "accumulate": 2}},
      "distilled": {**STAGE, "teacher": "teacher", "objective": DISTIL, "augment": {"shift": (1, 1)}},
      "int8": {
        **STAGE,
        "start": "distilled",
        "teacher": "teacher",
        "objective": DISTIL,
        "optimizer": {"learning_rate": 1e-3, "ema": 0.9},
        "sparsity": {"name": "magnitude", "density": 0.5},
        "quant": {"rules": (("*", "w8a8 learned"),)},
      },
    },
    "run": ("teacher", "distilled", "int8"),
  })  # fmt: skip
