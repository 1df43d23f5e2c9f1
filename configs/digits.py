"""Handwritten digits, 8x8: a convolutional teacher, and a perceptron that learns from it, pruned and in eight bits.

    python -m scripts.compress --config=configs/digits.py --workdir=runs/digits

It takes under two minutes. `python -m scripts.reproduce --table=digits --seeds=10` repeats the job over ten seeds.

Chosen by validation accuracy over ten seeds; docs/results.md has the numbers and the commands. The teacher sees
mixtures of images, which help it more than channels do. The student is so small that the teacher helps: the same
perceptron without one is worse, with mixtures of images too, which are what it has below. (With a second hidden layer
and widths of 128 and 64 it does as well without a teacher.) Its width is a multiple of 16 and large enough for products
of integers to take less time than those of floats; `python -m scripts.benchmark` shows that for the files of a run.
"""

from ml_collections import ConfigDict

DISTIL = {"hard_labels": {"weight": 0.3}, "hinton": {"weight": 0.7, "temperature": 4.0}}


def get_config() -> ConfigDict:
  return ConfigDict({
    "name": "digits",
    "data": {"name": "digits"},
    "models": {
      "teacher": {"name": "zoo.convnet:ConvNet", "kwargs": {"widths": (48, 96), "dense": (192,)}},
      "student": {"name": "zoo.mlp:MLP", "kwargs": {"widths": (64,)}},
    },
    "stages": {
      "teacher": {
        "model": "teacher",
        "epochs": 40,
        "augment": {"mixup": 0.4},
        "optimizer": {"learning_rate": 2e-3, "warmup_steps": 20},
      },
      "alone": {  # the student without a teacher, for as many epochs as all the stages below together
        "epochs": 440,
        "augment": {"mixup": 0.4},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 20},
      },
      "distilled": {
        "teacher": "teacher",
        "epochs": 200,
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 20},
        "objective": DISTIL,
      },
      "pruned": {
        "start": "distilled",
        "teacher": "teacher",
        "epochs": 200,
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
