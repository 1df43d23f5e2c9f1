"""An image classifier at three widths, each distilled from one teacher and quantized to int8: a file for every budget.

    python -m scripts.compress --config=examples/phone/config.py --workdir=runs/phone

Fashion-MNIST's original files are downloaded, or read from $LEANAX_DATA_DIR/fashion_mnist. `config.py:short` trains for
half as long on a tenth of the examples; `config.py:tiny` is on generated images of four classes, to see every part run,
and its figures mean nothing.
"""

from typing import Any

from ml_collections import ConfigDict

DISTIL = {"hard_labels": {"weight": 0.3}, "hinton": {"weight": 0.7, "temperature": 4.0}}
GENERATED = {"shape": (28, 28, 1), "classes": 4, "train": 64, "validation": 32, "test": 48, "noise": 40}

# argument: data, classes, the student's widths, the teacher's channels, epochs of teacher, student and its integers
PRESETS: dict[str, tuple[Any, ...]] = {
  "full": ({"name": "tfds:fashion_mnist"}, 10, (8, 16, 32), (32, 64), (8, 8, 2)),
  "short": ({"name": "tfds:fashion_mnist", "limit": 6000}, 10, (8, 16, 32), (32, 64), (4, 4, 1)),
  "tiny": ({"name": "synthetic", "kwargs": GENERATED}, 4, (2, 3, 4), (4, 4), (1, 1, 1)),
}


def get_config(argument: str = "full") -> ConfigDict:
  if argument not in PRESETS:
    raise ValueError(f"unknown argument {argument!r}; expected one of {', '.join(PRESETS)}")
  data, classes, widths, channels, (teacher, student, integers) = PRESETS[argument]
  tiny = argument == "tiny"
  rates = {"learning_rate": 4e-3, "warmup_steps": 0 if tiny else 20}
  batch = {"batch_size": 32 if tiny else 128}
  stages: dict[str, Any] = {
    "teacher": {**batch, "model": "teacher", "epochs": teacher, "optimizer": {**rates, "learning_rate": 1e-3}}
  }
  for width in widths:
    learns = {**batch, "model": f"w{width}", "teacher": "teacher", "objective": DISTIL}
    stages[f"w{width}"] = {**learns, "epochs": student, "optimizer": rates}
    stages[f"w{width}_int8"] = {
      **learns,
      "start": f"w{width}",
      "epochs": integers,
      "optimizer": {**rates, "learning_rate": 5e-4},
      "quant": {"rules": (("*", "w8a8 learned"),), "calibration_batches": 2 if tiny else 8},
    }
  return ConfigDict({
    "name": f"phone {argument}",
    "about": "an image classifier of depthwise convolutions, made by an example of leanax",
    "data": data,
    "models": {
      "teacher": {
        "name": "zoo.convnet:ConvNet",
        "kwargs": {"widths": channels, "dense": (2 * channels[-1],), "classes": classes},
      },
      **{f"w{width}": {"name": "examples.phone.net:PhoneNet", "kwargs": {"width": width, "classes": classes}}
         for width in widths},
    },
    "stages": stages,
    "run": tuple(stages),
    "evaluations": 1 if tiny else 8,
    "latency_runs": 20 if tiny else 200,
    "layer_seconds": 0.0 if tiny else 2.0,
  })  # fmt: skip
