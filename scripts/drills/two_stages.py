"""The experiment of the drill of changed files: a small teacher, and an int8 network that learns from its logits."""

STAGE = {"epochs": 3, "batch_size": 32, "model": "net", "optimizer": {"learning_rate": 0.05}}
EXPERIMENT = {
  "name": "flips",
  "data": {
    "name": "synthetic",
    "kwargs": {"shape": (6, 6, 1), "classes": 4, "train": 128, "validation": 32, "test": 64, "noise": 40, "shift": 0},
  },
  "models": {"net": {"name": "zoo.mlp:MLP", "kwargs": {"widths": (8,), "classes": 4}}},
  "stages": {
    "teacher": STAGE,
    "int8": {
      **STAGE,
      "start": "teacher",
      "teacher": "teacher",
      "objective": {"hinton": {"weight": 1.0, "temperature": 4.0}},
      "quant": {"rules": (("*", "w8a8"),), "calibration_batches": 2},
    },
  },
  "run": ("teacher", "int8"),
  "evaluations": 6,
  "checkpoint_every": 4,
  "latency_runs": 1,
  "layer_seconds": 0.0,
}
