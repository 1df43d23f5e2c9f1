"""Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531), section 3, on MNIST.

    python -m scripts.reproduce --table=hinton2015_mnist --workdir=runs/hinton

`cpu` trains on 12,000 examples and for fewer epochs, `paper` on all. `sweep_cpu` and `sweep_paper` are students with
two layers of 30 units at several temperatures. The teacher has dropout and sees digits moved by up to two pixels; its
students do not, and the weight constraints of the paper are left out.
"""

from ml_collections import ConfigDict

TEMPERATURES = (1.0, 2.0, 2.5, 4.0, 8.0, 20.0)
# argument: (training examples, 0 for all; the teacher's epochs; the students')
SIZES = {"cpu": (12_000, 40, 15), "paper": (0, 120, 60)}


def soft(temperature):
  return {"hinton": {"weight": 1.0, "temperature": temperature}}


def get_config(argument: str = "cpu") -> ConfigDict:
  sweep, size = argument.startswith("sweep_"), argument.removeprefix("sweep_")
  if size not in SIZES:
    raise ValueError(f"unknown argument {argument!r}; expected one of cpu, paper, sweep_cpu, sweep_paper")
  limit, teacher_epochs, student_epochs = SIZES[size]
  student = {"epochs": student_epochs, "batch_size": 128, "optimizer": {"learning_rate": 1e-3}}
  distilled = {**student, "teacher": "teacher", "objective": soft(20.0)}
  stages: dict[str, dict] = {
    "teacher": {
      "model": "teacher",
      "epochs": teacher_epochs,
      "batch_size": 128,
      "optimizer": {"learning_rate": 1e-3, "warmup_steps": 100},
      "augment": {"shift": (2, 2)},
    },
    "hard": student,
  }
  if sweep:
    stages |= {
      f"T{temperature:g}".replace(".", "_"): {**distilled, "objective": soft(temperature)}
      for temperature in TEMPERATURES
    }
  else:
    stages |= {
      "soft": distilled,
      "hard_without_3": {**student, "examples": {"without": (3,)}},
      "soft_without_3": {**distilled, "examples": {"without": (3,)}},
      "soft_only_7_8": {**distilled, "examples": {"only": (7, 8)}},
    }
  return ConfigDict({
    "name": f"Hinton et al. 2015, MNIST ({argument})",
    "data": {"name": "tfds:mnist", "limit": limit},
    "evaluations": 4,
    "gradient_norms": False,
    "models": {
      "teacher": {"name": "zoo.mlp:MLP", "kwargs": {"widths": (1200, 1200), "dropout": 0.5}},
      "student": {"name": "zoo.mlp:MLP", "kwargs": {"widths": (30, 30) if sweep else (800, 800)}},
    },
    "stages": stages,
    "run": tuple(stages),
    "shared": ("teacher",),
    "seeds_over": "vmap" if sweep else "loop",
  })  # fmt: skip
