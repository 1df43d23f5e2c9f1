"""Students cut out of their teacher, Fashion-MNIST: alone and distilled, against a random initialisation.

    python -m scripts.reproduce --table=kd_cut --workdir=runs/kd_cut

`cpu` and `paper` cut a convolutional net to a quarter of its channels; `layers_cpu` and `layers_paper` drop every
other block of a residual net. `cut` is the cut teacher before the student is trained.
"""

from ml_collections import ConfigDict

CONVOLUTIONS = {
  "teacher": {"name": "zoo.convnet:ConvNet", "kwargs": {"widths": (32, 64), "dense": (128,)}},
  "student": {"name": "zoo.convnet:ConvNet", "kwargs": {"widths": (8, 16), "dense": (32,)}},
}
BLOCKS = {
  "teacher": {"name": "zoo.resnet:ResNet", "kwargs": {"blocks": (2, 2), "widths": (8, 16)}},
  "student": {"name": "zoo.resnet:ResNet", "kwargs": {"blocks": (1, 1), "widths": (8, 16)}},
}
# argument: (training examples, 0 for all; epochs of the teacher and of the students)
SIZES = {"cpu": (10_000, 12, 6), "layers_cpu": (5_000, 12, 6), "paper": (0, 30, 30), "layers_paper": (0, 30, 30)}


def get_config(argument: str = "cpu") -> ConfigDict:
  if argument not in SIZES:
    raise ValueError(f"unknown argument {argument!r}; expected one of {', '.join(SIZES)}")
  layers = argument.startswith("layers_")
  limit, teacher_epochs, student_epochs = SIZES[argument]
  # Residual nets with batch norm take larger steps.
  rates = {"learning_rate": 1e-2, "warmup_steps": 20} if layers else {"learning_rate": 2e-3}
  student = {"epochs": student_epochs, "batch_size": 128, "optimizer": rates}
  distilled = {
    **student,
    "teacher": "teacher",
    "objective": {"hard_labels": {"weight": 0.1}, "hinton": {"weight": 0.9, "temperature": 4.0}},
  }
  part = {"cut": {"from": "teacher", "way": "layers" if layers else "width"}}
  stages = {
    "teacher": {
      "model": "teacher",
      "epochs": teacher_epochs,
      "batch_size": 128,
      "optimizer": rates if layers else {"learning_rate": 1e-3},
    },
    "cut": {**student, **part, "epochs": 0, "optimizer": {}},
    "random_alone": student,
    "cut_alone": {**student, **part},
    "random_hinton": distilled,
    "cut_hinton": {**distilled, **part},
  }
  if layers:
    stages["cut_effect_hinton"] = {**distilled, "cut": {**part["cut"], "keep": "effect"}}
  return ConfigDict({
    "name": f"students cut out of their teacher, Fashion-MNIST ({argument})",
    "data": {"name": "tfds:fashion_mnist", "limit": limit},
    "evaluations": 4,
    "gradient_norms": False,
    "models": BLOCKS if layers else CONVOLUTIONS,
    "stages": stages,
    "run": tuple(stages),
    "shared": ("teacher",),
  })  # fmt: skip
