"""Distillation into few bits: temperature against bit width, Fashion-MNIST.

    python -m scripts.reproduce --table=kd_bits_fashion --workdir=runs/kd_bits

Every quantized student starts from the same float student of its seed and trains with learned steps; first and last
layer have 8 bits.
"""

from ml_collections import ConfigDict

BITS = (2, 3, 4, 8)
TEMPERATURES = (1.0, 2.0, 5.0, 10.0)
# argument: (training examples, 0 for all; epochs of teacher, float student, quantized students)
SIZES = {"cpu": (5_000, 25, 15, 6), "paper": (0, 30, 30, 15)}


def get_config(argument: str = "cpu") -> ConfigDict:
  if argument not in SIZES:
    raise ValueError(f"unknown argument {argument!r}; expected one of {', '.join(SIZES)}")
  limit, teacher_epochs, student_epochs, quantized = SIZES[argument]
  stages: dict[str, dict] = {
    "teacher": {"model": "teacher", "epochs": teacher_epochs, "batch_size": 128, "optimizer": {"learning_rate": 1e-3}},
    "float": {"epochs": student_epochs, "batch_size": 128, "optimizer": {"learning_rate": 2e-3}},
  }
  for bits in BITS:
    stage = {
      "start": "float",
      "epochs": quantized,
      "batch_size": 128,
      "optimizer": {"learning_rate": 1e-3, "warmup_steps": 20},
      "quant": {"rules": (("*", f"w{bits}a{bits} learned"),)},
    }
    stages[f"w{bits}_hard"] = stage
    for temperature in TEMPERATURES:
      stages[f"w{bits}_T{temperature:g}"] = {
        **stage,
        "teacher": "teacher",
        "objective": {"hard_labels": {"weight": 0.1}, "hinton": {"weight": 0.9, "temperature": temperature}},
      }
  return ConfigDict({
    "name": f"temperature and bits, Fashion-MNIST ({argument})",
    "data": {"name": "tfds:fashion_mnist", "limit": limit},
    "evaluations": 2,
    "gradient_norms": False,
    "models": {
      "teacher": {"name": "zoo.convnet:ConvNet", "kwargs": {"widths": (16, 32), "dense": (64,)}},
      "student": {"name": "zoo.convnet:ConvNet", "kwargs": {"widths": (4, 8), "dense": (32,)}},
    },
    "stages": stages,
    "run": tuple(stages),
    "shared": ("teacher",),
  })  # fmt: skip
