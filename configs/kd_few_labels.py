"""A hundred labels: students that learn from them alone, from a teacher about the same examples, and about all others.

    python -m scripts.reproduce --table=kd_few_labels --workdir=runs/few_labels

The teacher has seen all labels; all students make the same number of updates. `mnist` has 12,000 examples,
`mnist_paper` all and wider nets.
"""

from ml_collections import ConfigDict

LABELS = 100
# argument: (data, teacher's widths and epochs, student's widths, its updates, batches per epoch over all examples)
CHOICES = {
  "digits": ({"name": "digits"}, (128, 128), 60, (32, 32), 1200, 17),
  "mnist": ({"name": "tfds:mnist", "limit": 12_000}, (300, 100), 20, (64, 32), 2000, 187),
  "mnist_paper": ({"name": "tfds:mnist"}, (1200, 1200), 40, (300, 100), 20_000, 843),
}
BATCH = 64


def get_config(argument: str = "digits") -> ConfigDict:
  if argument not in CHOICES:
    raise ValueError(f"unknown argument {argument!r}; expected one of {', '.join(CHOICES)}")
  data, wide, teacher_epochs, narrow, updates, updates_per_epoch = CHOICES[argument]
  rates = {"learning_rate": 1e-3, "warmup_steps": 20}
  few = {"epochs": updates // 2, "batch_size": LABELS // 2, "optimizer": rates}
  few |= {"examples": {"labelled": LABELS, "unlabelled": False}}
  both = {"hard_labels": {"weight": 0.1}, "hinton": {"weight": 0.9, "temperature": 4.0}}
  stages: dict[str, dict] = {
    "teacher": {"model": "teacher", "epochs": teacher_epochs, "batch_size": BATCH, "optimizer": rates},
    "alone": few,
    "same_100": {**few, "teacher": "teacher", "objective": both},
    "and_unlabelled": {
      "epochs": -(-updates // updates_per_epoch),
      "batch_size": BATCH,
      "optimizer": rates,
      "examples": {"labelled": LABELS},
      "teacher": "teacher",
      "objective": {"hard_labels": {"weight": 0.1, "mask": "labelled"}, "hinton": {"weight": 0.9, "temperature": 4.0}},
    },
  }
  return ConfigDict({
    "name": f"{LABELS} labels of {argument}",
    "data": data,
    "evaluations": 4,
    "gradient_norms": False,
    "models": {
      "teacher": {"name": "zoo.mlp:MLP", "kwargs": {"widths": wide, "dropout": 0.2}},
      "student": {"name": "zoo.mlp:MLP", "kwargs": {"widths": narrow}},
    },
    "stages": stages,
    "run": tuple(stages),
    "shared": ("teacher",),
    "seeds_over": "vmap",
  })  # fmt: skip
