"""The field's worked example on MNIST: a ResNet-18 teaches two convolutions, by logit regression or by Hinton's loss.

    python -m scripts.reproduce --table=tutorial_mnist --workdir=runs/tutorial

The regression is cross-entropy plus 0.1 times the sum over classes of the squared difference of the logits; `logit_l2`
is half that sum. `together` is the example as it is written in the field: the sum is over the batch of 64, too, 6.4
times the mean of the examples' sums, and the teacher starts from fresh weights, trained in the same loop by its own
optimizer. `cpu` trains on 2,000 examples, `paper` on all.
"""

from ml_collections import ConfigDict

# argument: (training examples, 0 for all; the teacher's epochs; the students')
SIZES = {"cpu": (2_000, 3, 10), "paper": (0, 20, 20)}


def get_config(argument: str = "cpu") -> ConfigDict:
  if argument not in SIZES:
    raise ValueError(f"unknown argument {argument!r}; expected one of {', '.join(SIZES)}")
  limit, teacher_epochs, student_epochs = SIZES[argument]
  student = {"epochs": student_epochs, "batch_size": 64, "optimizer": {"learning_rate": 1e-3}}
  distilled = {**student, "teacher": "teacher"}
  stages: dict[str, dict] = {
    "teacher": {"model": "teacher", "epochs": teacher_epochs, "batch_size": 64, "optimizer": {"learning_rate": 1e-3}},
    "alone": student,
    "logit_l2": {**distilled, "objective": {"hard_labels": {}, "logit_l2": {"weight": 0.2}}},
    "together": {
      **distilled,
      "teacher_mode": "together",
      "objective": {"hard_labels": {}, "logit_l2": {"weight": 0.2 * 64}},
    },
    "hinton_T2": {
      **distilled,
      "objective": {"hard_labels": {"weight": 0.5}, "hinton": {"weight": 0.5, "temperature": 2.0}},
    },
    "hinton_T4": {
      **distilled,
      "objective": {"hard_labels": {"weight": 0.5}, "hinton": {"weight": 0.5, "temperature": 4.0}},
    },
  }
  return ConfigDict({
    "name": f"ResNet-18 to two convolutions, MNIST ({argument})",
    "data": {"name": "tfds:mnist", "limit": limit},
    "evaluations": 2,
    "gradient_norms": False,
    "models": {
      "teacher": {"name": "zoo.resnet:ResNet", "kwargs": {"blocks": (2, 2, 2, 2), "widths": (64, 128, 256, 512)}},
      "student": {"name": "zoo.convnet:ConvNet", "kwargs": {"widths": (64, 128), "dense": ()}},
    },
    "stages": stages,
    "run": tuple(stages),
    "shared": ("teacher",),
  })  # fmt: skip
