"""MNIST: LeNet-300-100, LeNet-5 or a small batch-norm ResNet taken to a pruned int8 student.

    python -m scripts.compress --config=configs/mnist.py --workdir=runs/mnist_lenet300
    python -m scripts.compress --config=configs/mnist.py:lenet5 --workdir=runs/mnist_lenet5
    python -m scripts.compress --config=configs/mnist.py:resnet --workdir=runs/mnist_resnet
    python -m scripts.compress --config=configs/mnist.py:smoke --workdir=runs/mnist_smoke

The original files are downloaded, or read from --config.data.dir=DIRECTORY. `smoke` is the ResNet on 1,024 examples,
to see every part run; its figures mean nothing.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

LENET300 = {"name": "zoo.lenet:LeNet300"}
LENET5 = {"name": "zoo.lenet:LeNet5"}
RESNET = {"name": "zoo.resnet:ResNet", "kwargs": {"blocks": (1, 1, 1), "widths": (16, 32, 64)}}

# argument: (teacher, student, learning rate)
CHOICES = {
  "lenet300": (LENET300, {"name": "zoo.mlp:MLP", "kwargs": {"widths": (64, 32)}}, 1e-3),
  "lenet5": (LENET5, {"name": "zoo.convnet:ConvNet", "kwargs": {"widths": (8, 16), "dense": (64,)}}, 1e-3),
  "resnet": (RESNET, {"name": "zoo.resnet:ResNet", "kwargs": {"blocks": (1, 1, 1), "widths": (8, 16, 24)}}, 2e-3),
  "smoke": (
    {"name": "zoo.resnet:ResNet", "kwargs": {"blocks": (1, 1), "widths": (8, 16)}},
    {"name": "zoo.resnet:ResNet", "kwargs": {"blocks": (1, 1), "widths": (4, 8)}},
    2e-3,
  ),
}
# argument: the epochs of the teacher and of each of the student's stages
EPOCHS = {"lenet300": (12, 10, 10, 4), "lenet5": (8, 8, 8, 3), "resnet": (10, 10, 10, 4), "smoke": (1, 1, 1, 1)}
DISTIL = {"hard_labels": {"weight": 0.3}, "hinton": {"weight": 0.7, "temperature": 4.0}}


def get_config(argument: str = "lenet300") -> ConfigDict:
  return experiment("mnist", "tfds:mnist", EPOCHS, argument)


def experiment(name: str, data: str, epochs: Mapping[str, tuple[int, ...]], argument: str) -> ConfigDict:
  """The experiment on images of 28x28 pixels in ten classes; configs/fashion_mnist.py is another one."""
  if argument not in CHOICES:
    raise ValueError(f"unknown argument {argument!r}; expected one of {', '.join(CHOICES)}")
  (teacher, student, rate), (teacher_epochs, distilled, pruned, int8) = CHOICES[argument], epochs[argument]
  smoke = argument == "smoke"
  warmup = 2 if smoke else 20
  rates = {"learning_rate": rate, "warmup_steps": warmup}
  return ConfigDict({
    "name": f"{name} {argument}",
    "data": {"name": data, "limit": 1024 if smoke else 0},
    "evaluations": 2 if smoke else 20,
    "models": {"teacher": teacher, "student": student},
    "stages": {
      "teacher": {"model": "teacher", "epochs": teacher_epochs, "batch_size": 128, "optimizer": rates},
      "alone": {"epochs": distilled + pruned + int8, "batch_size": 128, "optimizer": rates},
      "distilled": {
        "teacher": "teacher",
        "epochs": distilled,
        "batch_size": 128,
        "optimizer": rates,
        "objective": DISTIL,
      },
      "pruned": {
        "start": "distilled",
        "teacher": "teacher",
        "epochs": pruned,
        "batch_size": 128,
        "optimizer": rates,
        "objective": DISTIL,
        "sparsity": {
          "name": "magnitude",
          "density": 0.4,
          "schedule": {"name": "cubic", "start": 0.1, "end": 0.6, "every": 50},
        },
      },
      "int8": {
        "start": "pruned",
        "teacher": "teacher",
        "epochs": int8,
        "batch_size": 128,
        "optimizer": {"learning_rate": rate / 5, "warmup_steps": warmup},
        "objective": DISTIL,
        "sparsity": {"name": "hold"},
        "quant": {"rules": (("*", "w8a8 learned"),)},
      },
    },
    "run": ("teacher", "alone", "distilled", "pruned", "int8"),
  })  # fmt: skip
