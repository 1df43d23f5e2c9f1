"""Shared by the benchmarks: interleaved timing, and a report with the command, the machine and its load."""

import json
import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from leanax.pipeline.environment import environment


def load() -> float | None:
  """Returns the load average of the last minute, or None where the system has none."""
  return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def write(out: str, what: str, command: str, load_before: float | None, results: Mapping[str, Any]) -> None:
  """Writes a benchmark's JSON: `results`, their description, the command and the environment."""
  report = {
    "what": what,
    "command": command,
    **results,
    "environment": environment(),
    "load_average": {"start": load_before, "end": load()},
  }
  path = Path(out)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def in_turns(
  calls: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 0
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
  """Returns wall and CPU seconds per call and round; every round runs all calls in a random order.

  Args:
    calls: functions that return when their work is done.
    rounds: number of measured rounds.
    warm_up: number of rounds before them that are not measured.
  """
  wall, cpu = ({name: [] for name in calls} for _ in range(2))
  for turn in range(-warm_up, rounds):
    order = list(calls)
    random.Random(turn).shuffle(order)
    for name in order:
      start, busy = time.perf_counter(), time.process_time()
      calls[name]()
      if turn >= 0:
        wall[name].append(time.perf_counter() - start)
        cpu[name].append(time.process_time() - busy)
  return wall, cpu
