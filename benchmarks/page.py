"""Generates docs/benchmarks.md from the JSON files in benchmarks/results.

python -m benchmarks.page
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path("benchmarks/results")
INTRODUCTION = """# Benchmarks

Each table is the result of the command above it, of one run in which all rows are interleaved; ratios are medians over
the rounds. `python -m benchmarks.page` generates this page from the JSON files in `benchmarks/results`.

`python -m benchmarks.accelerator` is for a machine with a GPU or a TPU. It counts the codes that differ between
simulations at the device's default precision and the integer reference, times products alone and training steps (plain,
masks, static and learned scales in each carrier), and runs the digits job; parts that would start after `--seconds`,
440 by default, are skipped. It writes `benchmarks/results/accelerator.json`. `--small` tries the script on a CPU.
"""


def read(name: str) -> dict[str, Any] | None:
  """Returns a result, or None if it was not measured."""
  file = RESULTS / f"{name}.json"
  return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
  lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
  return [*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows), ""]


def machine(result: dict[str, Any]) -> str:
  """Returns a line on the machine of a result."""
  environment = result.get("environment")
  if environment is None:
    processor, sets, cores = result["processor"]["model"], result["processor"]["flags"], result["processor"]["cores"]
    known = " ".join(name for name in sets if name in ("avx2", "avx512f", "avx512_vnni", "amx_int8"))
  else:
    processor, known, cores = environment["processor"], environment["instruction sets"], environment["cores"]
  jax = (environment or result)["versions"]["jax"]
  busy = result.get("load_average")
  busy = f"{busy['start']} to {busy['end']}" if isinstance(busy, dict) else busy
  return f"{processor} ({known}), {cores} cores, jax {jax}; load average of the machine {busy}."


def step_cost(result: dict[str, Any]) -> list[str]:
  rows = [
    (model.upper(), name, row["wall_ratio"], row["cpu_ratio"], row.get("target", ""))
    for model, cases in result["models"].items()
    for name, row in cases.items()
  ]
  return [
    "The MLP is 784-1024-1024-10 at batch 512, the CNN has convolutions of 32, 64 and 64 channels, batch 64 of 28x28;",
    "SGD with momentum, the engine's compiled step. The plain step is measured twice, which shows the noise.",
    "",
    *table(("model", "step", "wall ratio", "CPU ratio", "at most"), rows),
  ]


def kd_cost(result: dict[str, Any]) -> list[str]:
  head = ("step", "over", "wall ratio", "CPU ratio", "operations", "at most")
  rows: dict[bool, list[tuple[Any, ...]]] = {False: [], True: []}
  for name, row in result["rows"].items():
    ratios = row["wall_ratio"], row["cpu_ratio"], row["arithmetic"]
    rows[row["pairs"]].append((name, row["over"], *ratios, row.get("target", "")))
  return [
    "The step of `hard_labels` and each loss, over that of `hard_labels` and `hinton`: with the same cached logits,",
    "or, for a loss on activations, with the same running teacher; over `hard_labels` alone for one without a teacher.",
    "The student has convolutions of 16 and 32 channels and 64 dense units, the teacher twice as many; batch 64 of",
    "28x28. Operations are the ratio of XLA's counts: above 1.05 the loss itself computes more, and has no target. XLA",
    "does not count the eigendecompositions of `kdsvd`.",
    "",
    *table(head, rows[False]),
    "Losses between all pairs of examples, or with a memory of them:",
    "",
    *table(head, rows[True]),
  ]


def threshold(result: dict[str, Any]) -> list[str]:
  rows = [
    (f"{int(count):,}", name, row["wall_ms"], row["sort_over_this_wall"], row["sort_over_this_cpu"])
    for count, cases in result["entries"].items()
    for name, row in cases.items()
  ]
  return table(("weights", "form", "ms", "times faster (wall)", "times faster (CPU)"), rows)


def rates(result: dict[str, Any]) -> list[str]:
  rows = [
    (size, name, f"{row['median']:,}", f"{row['best']:,}")
    for size, cases in result["rates"].items()
    for name, row in cases.items()
  ]
  return [
    "28x28x1 unless stated; examples per second, median and best round.",
    "",
    *table(("batch", "pipeline", "median", "best"), rows),
  ]


def figures(result: dict[str, Any]) -> list[str]:
  return table(("", "measured"), list(result["figures"].items()))


def onnx_peers(result: dict[str, Any]) -> list[str]:
  rows = [
    (
      case,
      row["name"].removesuffix(".onnx"),
      f"{row['bytes']:,}",
      f"{row['wall_us']:.1f}",
      f"{row['cpu_us']:.1f}",
      f"{row['accuracy']:.2%}" if "accuracy" in row else "",
      f"{row['error_of_logits']:.4f}" if "error_of_logits" in row else "",
    )
    for case, found in result["cases"].items()
    for row in found["files"]
  ]
  return [
    "One thread, batch 1, files in turns; wall time is the median of rounds, CPU time the least call. The error of the",
    "logits is the root mean square of their distance to the float file's, over the spread of those. `ours_float_ends`",
    "quantizes its input and dequantizes its output in the file, as quantize_static's does.",
    "",
    *table(("network", "file", "bytes", "wall us", "CPU us", "accuracy", "error of logits"), rows),
  ]


def litert_peers(result: dict[str, Any]) -> list[str]:
  rows = [
    (
      case,
      row["name"],
      f"{row['bytes']:,}",
      f"{row['wall_min_us']:.1f}",
      f"{row['wall_us']:.1f}",
      f"{row['cpu_us']:.1f}",
      f"{row['accuracy']:.2%}" if "accuracy" in row else "",
      f"{row['error_of_logits']:.4f}",
      f"{row['seconds']:.1f}",
    )
    for case, found in result["cases"].items()
    for row in found["files"]
  ]
  head = ("network", "file", "bytes", "least us", "median us", "CPU us", "accuracy", "error of logits", "made in, s")
  return [
    "One thread, batch 1, files in turns; `float` and `int8` are ours. Errors of logits are the root mean square of",
    "their distance to our float file's, over the spread of those. litert-converter 0.5.0 has no calibration: its int8",
    "file is made of our grids, and has floats at its ends. TensorFlow 2.21 calibrates on the same images.",
    "",
    *table(head, rows),
  ]


def litert_varieties(result: dict[str, Any]) -> list[str]:
  rows = [
    (
      case,
      row["name"],
      f"{row['bytes']:,}",
      f"{row['wall_min']:.1f}",
      f"{row['cpu_min']:.1f}",
      f"{row['error_of_outputs']:.4f}",
    )
    for case, found in result["cases"].items()
    for row in found
  ]
  return [
    "One thread, batch 1, files in turns; the least call. The error of the outputs is the root mean square of their",
    "distance to those of the float32 file above, over the spread of those, with random weights and inputs. float16,",
    "int8 and dynamic_int8 are `deploy.litert(weights=...)` of a float network; w4, w8a8 and w4a8 are settings of",
    "quantization, for all layers.",
    "",
    *table(("network", "file", "bytes", "wall us", "CPU us", "error of outputs"), rows),
  ]


def onnx_groups(result: dict[str, Any]) -> list[str]:
  head = ("setting", "form", "bytes", "us, batch 1", "us, batch 64", "difference")
  rows = [
    (
      row["setting"],
      row["form"],
      f"{row['bytes']:,}",
      f"{row['us_batch_1']:.0f}",
      f"{row['us_batch_64']:.0f}",
      f"{row['difference']:.1e}",
    )
    for row in result["rows"]
  ]
  return [
    "onnxruntime, one thread, files in turns; the least call. Five dense layers of 1024 by 1024; the forms are those",
    "of `deploy.onnx(groups=...)`. The difference is the largest between the file's outputs and the simulation's, over",
    "the largest output; with 8-bit activations one code on a tie is such a difference.",
    "",
    *table(head, rows),
  ]


def export_time(result: dict[str, Any]) -> list[str]:
  rows = [
    (
      case,
      kind,
      row["layers"],
      *(row["cpu_s"][step] for step in ("fold", "lift")),
      row["cpu_total_s"],
      row["wall_total_s"],
    )
    for case, kinds in result["networks"].items()
    for kind, row in kinds.items()
  ]
  return [
    "From a network with batch norms and random weights to both files, the programs of the proofs compiled; seconds of",
    "the fastest round. CPU seconds are of all threads, and of the steps that take longest: folding batch norms, and",
    "lifting with the proofs of each layer and of the whole.",
    "",
    *table(("network", "file", "layers", "fold, CPU s", "lift, CPU s", "all, CPU s", "all, wall s"), rows),
  ]


def litert_int8(result: dict[str, Any]) -> list[str]:
  rows = [
    (
      case,
      *(f"{one['cpu_us']:.1f}" for one in row["files"]),
      row["faster"]["cpu"],
      row["faster"]["wall"],
      row.get("at_least") or "",
      f"{row['same_answer']:.2%} of {row['images']:,}",
      f"{row['same_codes']:.2%}",
    )
    for case, row in result["networks"].items()
  ]
  head = (
    "network",
    "float, CPU us",
    "int8, CPU us",
    "times faster (CPU)",
    "(wall)",
    "at least",
    "same answer",
    "same codes",
  )
  return [
    "LiteRT, one thread, batch 1, the two files in turns. Answers and codes of the int8 file are compared with the",
    "simulation's: for the first three with random weights, whose largest logits are often a step apart; those",
    "of the other two, on the digits and on MNIST, are trained and compared on their test images.",
    "",
    *table(head, rows),
  ]


def efficientnet(result: dict[str, Any]) -> list[str]:
  times = {row["name"]: row for row in result["latency"]["models"]}
  rows = [
    (
      name,
      f"{one['bytes']:,}",
      f"{times[name]['cpu_us'] / 1e3:.2f}",
      f"{times[name]['wall_min_us'] / 1e3:.2f}",
      f"{one['same_answer']:.1%}",
      f"{one.get('same_answer_of_crops', float('nan')):.1%}",
      f"{one['same_as_simulation']:.1%}",
      f"{one.get('smoke', '')}",
    )
    for name, one in result["files"].items()
  ]
  smoke = result.get("smoke", {"pictures": 0, "crops": 0, "float": 0})
  same = '"same answer"'
  head = ("file", "bytes", "CPU ms", "wall ms", f"{same}, CIFAR-10", "crops", "as the simulation", "smoke test")
  return [
    "The public weights, 224x224, batch 1, one thread, all files in turns. Ranges are of 64 pictures, rounded to",
    f"nearest without training. {same.capitalize()} is that of the float network, on {result['pictures']:,} test",
    "pictures of CIFAR-10 (from 32x32, which no class of ImageNet looks like) and on",
    f"{smoke['crops']} crops of {smoke['pictures']} photographs; the smoke test is the number of these whose label is",
    f"right ({smoke['float']} for the network in JAX).",
    "",
    *table(head, rows),
  ]


SECTIONS = (
  ("step_cost_cpu", "Cost of a method per training step", step_cost),
  ("kd_cost_cpu", "Cost of a distillation loss per training step", kd_cost),
  ("threshold_cpu", "Exact magnitude thresholds against a sort", threshold),
  ("compile_cost_cpu", "Rewriting a traced model", figures),
  ("start_up_cpu", "Start-up", figures),
  ("input_cpu", "Input", rates),
  ("export_time_cpu", "Export", export_time),
  ("litert_int8_cpu", "int8 beside float in LiteRT", litert_int8),
  ("efficientnet_cpu", "EfficientNet-Lite0 with its public weights", efficientnet),
  ("litert_varieties_cpu", "Weights in LiteRT files", litert_varieties),
  ("onnx_groups_cpu", "Kernels in groups in ONNX files", onnx_groups),
  ("onnx_peers_cpu", "ONNX files beside quantize_static", onnx_peers),
  ("litert_peers_cpu", "LiteRT files beside litert-converter's and TensorFlow's", litert_peers),
)


def page() -> str:
  """Returns the page as text."""
  lines = [INTRODUCTION]
  for name, title, body in SECTIONS:
    result = read(name)
    if result is not None:
      lines += [f"## {title}", "", f"`{result['command']}`", "", *body(result), machine(result), ""]
  return "\n".join(lines)


def main() -> None:
  Path("docs/benchmarks.md").write_text(page(), encoding="utf-8")
  print("docs/benchmarks.md")


if __name__ == "__main__":
  main()
