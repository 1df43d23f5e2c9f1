"""Latency of exported files in the real runtime, in turns: changes in the machine's speed reach all files alike."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leanax import deploy
from leanax.pipeline.environment import environment
from leanax.pipeline.tables.tables import microseconds, size


def benchmark(files: Sequence[str], *, threads: int = 1, rounds: int = 20, runs: int = 50) -> dict[str, Any]:
  """Measures exported files, of any formats, at batch 1.

  Args:
    files: paths.
    threads: threads of the runtime.
    rounds: rounds in which each file is measured once.
    runs: calls per round.

  Returns:
    {"environment", "threads", "models": [{"name", "bytes", "wall_us", "cpu_us", "ratio"}]}: the median over the
    rounds of the round's median wall time, the least process CPU time, and the median of the paired ratios to the first
    file.
  """
  loaded = {file: deploy.open_file(file, threads=threads) for file in files}
  wall: dict[str, list[float]] = {file: [] for file in loaded}
  cpu: dict[str, list[float]] = {file: [] for file in loaded}
  for _ in range(rounds):
    for file, model in loaded.items():
      latency = model.latency(runs, warm_up=5)
      wall[file].append(latency.wall_median)
      cpu[file].append(latency.cpu_min)
  base = np.array(wall[next(iter(wall))])
  rows = [
    {
      "name": Path(file).name,
      "bytes": model.bytes,
      "wall_us": float(np.median(wall[file])),
      "cpu_us": min(cpu[file]),
      "ratio": float(np.median(base / np.array(wall[file]))),
    }
    for file, model in loaded.items()
  ]
  return {"environment": environment(), "threads": threads, "models": rows}


def table(result: dict[str, Any]) -> str:
  """Returns the figures for a terminal."""
  width = max(len(row["name"]) for row in result["models"])
  lines = [f"{'file':{width}}  {'size':>8}  {'wall':>9}  {'CPU':>9}  speed-up"]
  for row in result["models"]:
    times = f"{microseconds(row['wall_us']):>9}  {microseconds(row['cpu_us']):>9}"
    lines.append(f"{row['name']:{width}}  {size(row['bytes']):>8}  {times}  {row['ratio']:.2f}")
  machine = result["environment"]
  lines.append(
    f"{machine['processor']}, {machine['instruction sets']}, {result['threads']} of {machine['cores']} cores"
  )
  return "\n".join(lines)
