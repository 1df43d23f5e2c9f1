"""Kinds of teachers, on Fashion-MNIST: an ensemble, an assistant between teacher and student, a chain of born-again
students, the average of the student's own weights, peers that teach each other, and function matching.

    python -m scripts.reproduce --table=kd_teachers --workdir=runs/kd_teachers

The ensemble is that of Hinton et al. (arXiv:1503.02531), the assistant Mirzadeh et al. (arXiv:1902.03393), born-again
networks Furlanello et al. (arXiv:1805.04770), the average Tarvainen and Valpola (arXiv:1703.01780), peers Zhang et al.
(arXiv:1706.00384), function matching Beyer et al. (arXiv:2106.05237): the teacher's views, mixed, and no labels.
"""

from ml_collections import ConfigDict

# argument: (training examples, 0 for all; the teacher's epochs; the students'; those of function matching)
SIZES = {"cpu": (5_000, 25, 10, 40), "paper": (0, 60, 60, 600)}


def get_config(argument: str = "cpu") -> ConfigDict:
  if argument not in SIZES:
    raise ValueError(f"unknown argument {argument!r}; expected one of {', '.join(SIZES)}")
  limit, teacher_epochs, student_epochs, long = SIZES[argument]
  rates = {"learning_rate": 1e-2, "warmup_steps": 20}
  student = {"epochs": student_epochs, "batch_size": 128, "optimizer": rates}
  teacher = {"model": "teacher", "epochs": teacher_epochs, "batch_size": 128, "optimizer": rates}
  both = {"hinton": {"weight": 1.0, "temperature": 2.0}}  # as configs/kd_fashion.py found it best
  softly = {"hard_labels": {"weight": 1.0}, "hinton": {"weight": 1.0, "temperature": 1.0}}
  views = {"shift": (2, 2), "mixup": 1.0, "views": 8, "seed": 0}
  matching = {"epochs": long, "batch_size": 128, "optimizer": rates, "augment": views, "teacher": "teacher"}
  stages: dict[str, dict] = {
    "teacher": teacher,
    "second": {**teacher, "augment": {"shift": (1, 1)}},
    "assistant": {**teacher, "model": "assistant", "teacher": "teacher", "objective": both},
    "alone": student,
    "one_teacher": {**student, "teacher": "teacher", "objective": both},
    "ensemble": {**student, "teacher": "teacher, second", "objective": both},
    "by_assistant": {**student, "teacher": "assistant", "objective": both},
    "born_again": {**student, "model": "again", "teacher": "alone", "objective": softly},
    "born_again_2": {**student, "model": "again_2", "teacher": "born_again", "objective": softly},
    "own_average": {**student, "teacher": "itself", "optimizer": {**rates, "ema": 0.99}, "objective": softly},
    "peers": {**student, "peers": 2, "objective": softly},
    "alone_long": {**student, "epochs": long},
    "matching": {**matching, "objective": {"hinton": {"weight": 1.0, "temperature": 2.0}}},
  }
  return ConfigDict({
    "name": f"kinds of teachers, Fashion-MNIST ({argument})",
    "data": {"name": "tfds:fashion_mnist", "limit": limit},
    "evaluations": 2,
    "gradient_norms": False,
    "models": {
      "teacher": {"name": "zoo.convnet:ConvNet", "kwargs": {"widths": (16, 32), "dense": (64,)}},
      "assistant": {"name": "zoo.convnet:ConvNet", "kwargs": {"widths": (8, 16), "dense": (48,)}},
      # The same net under three names, so that a born-again net starts from other weights than its teacher.
      **{
        name: {"name": "zoo.convnet:ConvNet", "kwargs": {"widths": (4, 8), "dense": (32,)}}
        for name in ("student", "again", "again_2")
      },
    },
    "stages": stages,
    "run": tuple(stages),
    "shared": ("teacher", "second", "assistant"),
  })  # fmt: skip
