"""Handwritten digits in eight bits without training: a float network rounded to nearest after calibration.

    python -m scripts.compress --config=configs/digits_ptq.py --workdir=runs/digits_ptq

It takes half a minute. Batch norms, where a network has them, are folded first; 8 batches of training images give the
ranges of the activations.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict({
    "name": "digits, post-training quantization",
    "data": {"name": "digits"},
    "models": {
      "student": {"name": "zoo.convnet:ConvNet", "kwargs": {"widths": (16, 32), "dense": (64,)}},
    },
    "stages": {
      "float": {"epochs": 40, "optimizer": {"learning_rate": 3e-3, "warmup_steps": 20}},
      "int8": {
        "kind": "post_training",
        "start": "float",
        "quant": {"rules": (("*", "w8a8"),), "calibration_batches": 8},
      },
    },
    "run": ("float", "int8"),
  })  # fmt: skip
