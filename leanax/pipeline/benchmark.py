"""Latency of exported files in the real runtime, in turns: changes in the machine's speed reach all files alike."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leanax import deploy
from leanax.deploy import Latency, Runner
from leanax.pipeline.environment import environment
from leanax.pipeline.tables.tables import interval, microseconds, size


def interleaved(files: Mapping[str, Runner], rounds: int, runs: int) -> dict[str, list[Latency]]:
  """Returns each file's latency in each of some rounds, in which all files take turns.

  Args:
    files: opened ones, by any names.
    rounds: in which each file is measured once.
    runs: calls per round.
  """
  found: dict[str, list[Latency]] = {name: [] for name in files}
  for _ in range(rounds):
    for name, file in files.items():
      found[name].append(file.latency(runs, warm_up=5))
  return found


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
  found = interleaved(loaded, rounds, runs)
  wall = {file: np.array([latency.wall_median for latency in each]) for file, each in found.items()}
  base = wall[next(iter(wall))]
  rows = [
    {
      "name": Path(file).name,
      "bytes": model.bytes,
      "wall_us": float(np.median(wall[file])),
      "cpu_us": min(latency.cpu_min for latency in found[file]),
      "ratio": float(np.median(base / wall[file])),
    }
    for file, model in loaded.items()
  ]
  return {"environment": environment(), "threads": threads, "models": rows}


def latencies(files: Mapping[str, str], runs: int) -> dict[str, dict[str, Any]]:
  """Returns the latency of each file, all measured in turns on one thread, and which of the others are as fast.

  Args:
    files: paths by names.
    runs: calls of each file over all rounds, of which there are 20 at most.

  Returns:
    By the same names {"wall_min", "wall_median", "cpu_min", "runs", "threads", "rounds", "as_fast"}: microseconds, the
    medians of each round, and the names of files that cannot be told from it (`as_fast`).
  """
  rounds = max(min(runs // 10, 20), 1)
  per_round = -(-runs // rounds)
  found = interleaved({name: deploy.open_file(path) for name, path in files.items()}, rounds, per_round)
  medians = {name: [latency.wall_median for latency in each] for name, each in found.items()}
  return {
    name: {
      "wall_min": min(latency.wall_min for latency in each),
      "wall_median": float(np.median(medians[name])),
      "cpu_min": min(latency.cpu_min for latency in each),
      "runs": rounds * per_round,
      "threads": each[0].threads,
      "rounds": medians[name],
      "as_fast": [other for other in files if other != name and as_fast(medians[name], medians[other])],
    }
    for name, each in found.items()
  }


NOISE = 0.05  # the share below which a difference of two latencies is not one, however steady it was in one process


def as_fast(one: Sequence[float], other: Sequence[float]) -> bool:
  """Returns whether two files' latencies are within noise, of the medians of the same rounds.

  They are unless the 95 % interval of the paired ratio leaves out 1, and the ratio is further from it than `NOISE`.
  """
  logs = np.log(np.array(one) / np.array(other))
  mean, half = interval(logs.tolist()) if len(logs) > 1 else (float(logs[0]), np.inf)
  return bool(abs(mean) <= max(half, np.log1p(NOISE)))


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
