"""The rate of the input, in examples per second: shuffled, gathered, augmented and normalised inside jit.

python -m benchmarks.input [--out=benchmarks/results/input_cpu.json]

The kinds of input are timed in turns, so that other load on the machine affects all of them equally; the median, the
best round and the machine's load are written. A call makes one batch; results are awaited at the end of a round, as in
training.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from leanax.engine.data import Augment, Input, device_arrays, measure, train_batch_at
from leanax.engine.data import load as load_data
from leanax.engine.data.splits import Split

ROUNDS = 7
CALLS = 30
COLOUR = (32, 32, 3)
KINDS = {
  "order, gather, normalise": ((28, 28, 1), Augment()),
  "+ pad-crop 2": ((28, 28, 1), Augment(crop=2)),
  "+ pad-crop 2, flip": ((28, 28, 1), Augment(crop=2, flip=True)),
  "+ shift (2, 2), flip": ((28, 28, 1), Augment(shift=(2, 2), flip=True)),
  "+ pad-crop 2, flip, mixup 0.2": ((28, 28, 1), Augment(crop=2, flip=True, mixup=0.2)),
  "colour 32x32: order, gather, normalise": (COLOUR, Augment()),
  "colour 32x32: + pad-crop 4, flip": (COLOUR, Augment(crop=4, flip=True)),
  "colour 32x32: + resized crop, flip": (COLOUR, Augment(resized_crop=(0.08, 1.0), flip=True)),
  "colour 32x32: + brightness, contrast, saturation 0.4": (
    COLOUR,
    Augment(brightness=0.4, contrast=0.4, saturation=0.4),
  ),
  "colour 32x32: + hue 0.1": (COLOUR, Augment(hue=0.1)),
  "colour 32x32: + erase 0.25": (COLOUR, Augment(erase=0.25)),
  "colour 32x32: + mixup 0.2": (COLOUR, Augment(mixup=0.2)),
  "colour 32x32: + cutmix 1.0": (COLOUR, Augment(cutmix=1.0)),
}


def processor() -> dict[str, Any]:
  """Returns the processor's model, its vector instructions and the number of usable cores."""
  model, flags = platform.processor(), []
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(reversed([line.split(":", 1) for line in lines if ":" in line]))
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    model = fields.get("model name", model)
    flags = [flag for flag in fields.get("flags", "").split() if flag.startswith(("avx", "amx", "fma", "sse4"))]
  except OSError:
    pass
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  return {"model": model, "flags": flags, "cores": cores}


def make(shape: tuple[int, int, int], examples: int) -> Split:
  return load_data("synthetic", shape=shape, train=examples, validation=0, test=0).train


def time_all(batch_size: int, examples: int) -> dict[str, dict[str, float]]:
  splits = {shape: make(shape, examples) for shape, _ in KINDS.values()}
  calls = {}
  for name, (shape, augment) in KINDS.items():
    spec = Input(batch_size, preprocess=measure(splits[shape]), augment=augment)
    arrays = device_arrays(splits[shape])
    compiled = jax.jit(train_batch_at, static_argnums=2)
    jax.block_until_ready(compiled(arrays, np.int32(0), spec))
    calls[name] = lambda step, compiled=compiled, arrays=arrays, spec=spec: compiled(arrays, np.int32(step), spec)
  rates = {name: [] for name in KINDS}
  for turn in range(ROUNDS):
    for name, call in calls.items():
      start = time.perf_counter()
      for step in range(turn * CALLS, (turn + 1) * CALLS):
        batch = call(step)
      jax.block_until_ready(batch)
      rates[name].append(CALLS * batch_size / (time.perf_counter() - start))
  return {name: {"median": round(statistics.median(r)), "best": round(max(r))} for name, r in rates.items()}


def main() -> None:
  parser = argparse.ArgumentParser(description="Examples per second of the input.")
  parser.add_argument("--out", default="benchmarks/results/input_cpu.json")
  parser.add_argument("--examples", type=int, default=60000)
  options = parser.parse_args()
  device = jax.devices()[0]
  report = {
    "what": "examples per second, by batch size",
    "command": "python -m benchmarks.input",
    "examples": options.examples,
    "rounds": ROUNDS,
    "calls_a_round": CALLS,
    "rates": {str(size): time_all(size, options.examples) for size in (256, 512)},
    "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
    "processor": processor(),
    "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    "versions": {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__},
  }
  path = Path(options.out)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(report, indent=1) + "\n")
  for size, rates in report["rates"].items():
    for name, rate in rates.items():
      print(f"batch {size:>4}  {name:34} {rate['median']:>10,} per second, best {rate['best']:,}")


if __name__ == "__main__":
  main()
