"""The cases of `scripts.drills.configs`: two experiments, their keys, and hostile values for each."""

from typing import Any, NamedTuple

import ml_collections

from leanax.pipeline.config import loading, tree

RATES = {"learning_rate": 0.01}
PLAIN: dict[str, Any] = {
  "data": {"name": "digits", "limit": 64},
  "models": {"student": {"name": "zoo.mlp:MLP", "kwargs": {"widths": (8,)}}},
  "stages": {"student": {"epochs": 1, "batch_size": 16, "optimizer": RATES}},
  "run": ("student",),
  "evaluations": 1,
}
# Every switch is on: what is without effect in the first experiment has one here.
RICH: dict[str, Any] = {
  **PLAIN,
  "models": {
    "teacher": {"name": "zoo.mlp:MLP", "kwargs": {"widths": (16,)}},
    "student": {"name": "zoo.mlp:MLP", "kwargs": {"widths": (8,), "dropout": 0.1}},
  },
  "stages": {
    "teacher": {"model": "teacher", "epochs": 1, "batch_size": 16, "optimizer": RATES},
    "student": {
      "teacher": "teacher",
      "epochs": 2,
      "batch_size": 16,
      "examples": {"labelled": 48, "unlabelled": False},
      "optimizer": {
        "name": "sgd", "learning_rate": 0.05, "schedule": "step", "milestones": (0.5,), "ema": 0.5, "clip_norm": 1.0,
        "warmup_steps": 1, "weight_decay": 1e-3,
      },
      "augment": {
        "crop": 1, "resized_crop": (0.5, 1.0), "erase": 0.5, "mixup": 0.5, "cutmix": 0.5, "brightness": 0.2,
        "contrast": 0.2, "flip": True, "views": 2,
      },
      "objective": {"hard_labels": {"weight": 0.5}, "hinton": {"weight": 0.5, "temperature": 2.0}},
      "sparsity": {
        "name": "magnitude", "density": 0.5, "schedule": {"name": "cubic", "start": 0.0, "end": 0.5, "every": 1},
      },
      "quant": {"rules": (("*", "w8a8 learned"),), "calibration_batches": 2},
    },
  },
  "run": ("teacher", "student"),
}  # fmt: skip
BASES = {"plain": PLAIN, "rich": RICH}
# Keys of free groups of the second one's student that it does not set.
FREE = (
  "sparsity.rules", "sparsity.stacked", "sparsity.threshold", "sparsity.pattern", "sparsity.pack_axis",
  "sparsity.allocation", "objective.hinton.loss", "objective.hinton.mask", "objective.hinton.ignore_label",
  "objective.hinton.output", "objective.hinton.weight.name", "objective.hard_labels.class_weights", "objective.crd",
  "objective.other.loss", "reparam.name", "reparam.decay",
)  # fmt: skip

VALUES: tuple[Any, ...] = (
  -1, 0, 1, 2, 3, 1000, 2**31 - 1, 2**31, 2**63, 10**400, -(2**31), -1.0, -0.5, 0.0, 1e-30, 1e-7, 0.5, 1.0, 1.5, 1e6,
  1e15, 1e30, 1e308, float("nan"), float("inf"), "", "abc", "a/b", "nan", "../x", "x" * 3000, "\0", None, True, False,
  (), (0,), (1, 2), (-1, 1e308), (10**9,), (0.5,), ("abc",), (("a", "b"),), (("*", "w8a8"),), (None,), {"a": 1}, {},
  [1],
)  # fmt: skip
TEXTS = (
  "", "abc", "-1", "0", "0.5", "0.5,", "1e9", "1e-30", "1e308", "nan", "inf", "-inf", "none", "True", "2147483648",
  "9223372036854775808", "9" * 500, "()", "(", "0,", "(1,2)", "1,2,3", "(('a','b'),)", "(1000000000,)", "[1]", "{1: 2}",
  "((((((", "__import__('os')", "\N{SNOWMAN}", "*",
)  # fmt: skip

# Keys that change no weight of this run: words, what is measured, written and shown, and ways to compute the same.
SAME = (
  "name", "about", "licence", "keep", "checkpoint_every", "evaluations", "latency_runs", "layer_seconds", "most_lost",
  "gradient_norms", "steps_per_call", "metrics", "export", "export_failure", "cache_teacher", "cache_form",
  "cache_top_k", "seeds", "seeds_over", "shared", "parallel", "patience", "per_device_statistics", "limit", "rules",
  "ends", "new",
)  # fmt: skip


class Case(NamedTuple):
  """A change of one key of an experiment.

  Attributes:
    base: the experiment's name in `BASES`.
    key: dotted.
    value: what it is set to.
    text: whether it is given on the command line, as a text.
  """

  base: str
  key: str
  value: Any
  text: bool


def cases() -> list[Case]:
  """Returns every key of both experiments times every value, those of earlier stages left out."""
  found = []
  for base, values in BASES.items():
    whole = loading.complete(config_of(values))
    keys = dict(tree.leaves(whole))
    keys = [key for key in keys if not key.startswith(("stages.teacher.", "models.teacher."))]
    keys += [f"stages.student.{key}" for key in FREE] if base == "rich" else []
    groups = {key.rpartition(".")[0] for key in keys if "." in key} | {"models", "stages"}
    found += [Case(base, key, value, False) for key in (*keys, *sorted(groups)) for value in VALUES]
    found += [Case(base, key, text, True) for key in keys for text in TEXTS]
  return found


def config_of(values: Any) -> ml_collections.ConfigDict:
  """Returns plain values as the config that a file gives."""
  return ml_collections.ConfigDict(values)
