"""The exact magnitude threshold and mask compared with sorting the magnitudes, in one interleaved run.

python -m benchmarks.threshold [--sizes 1000000 25000000] [--rounds 3] [--out=benchmarks/results/threshold_cpu.json]

In each round every form runs once on the same weights, in a random order; a ratio is the median over rounds of the
time of jnp.sort over the form's in the same round. CPU time is given beside wall time, because other load affects it
less. Every result is checked against the sorted magnitudes.
"""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sparsity
from benchmarks.common import in_turns
from benchmarks.input import processor

DENSITY = 0.2
SORT = "jnp.sort of magnitudes"


def forms(keep: int) -> dict[str, Callable[[jax.Array, jax.Array], jax.Array]]:
  """Returns the timed functions of normal weights and of the same weights rounded to about 100 magnitudes."""
  return {
    SORT: lambda x, tied: jnp.sort(jnp.abs(x)),
    "threshold": lambda x, tied: sparsity.kth_magnitude(x, keep),
    "threshold, mask, tie-break": lambda x, tied: sparsity.topk_mask(x, keep),
    "the same, many ties": lambda x, tied: sparsity.topk_mask(tied, keep),
  }


def measure(size: int, rounds: int) -> dict[str, Any]:
  x = jax.random.normal(jax.random.key(0), (size,))
  tied = jnp.round(x * 25) / 25
  keep = sparsity.count(size, DENSITY)
  calls = {name: jax.jit(form) for name, form in forms(keep).items()}
  results = {name: jax.block_until_ready(call(x, tied)) for name, call in calls.items()}
  if float(results["threshold"]) != float(results[SORT][size - keep]):
    raise AssertionError("the threshold differs from the sorted magnitudes")
  for name in list(calls)[2:]:
    if int(jnp.sum(results[name], dtype=jnp.int32)) != keep:
      raise AssertionError(f"{name}: another count than {keep}")
  del results
  waiting = {name: lambda call=call: jax.block_until_ready(call(x, tied)) for name, call in calls.items()}
  wall, cpu = in_turns(waiting, rounds)
  return {
    name: {
      "wall_ms": round(1e3 * statistics.median(wall[name]), 2),
      "cpu_ms": round(1e3 * statistics.median(cpu[name]), 2),
      "sort_over_this_wall": ratio(wall[SORT], wall[name]),
      "sort_over_this_cpu": ratio(cpu[SORT], cpu[name]),
    }
    for name in calls
  }


def ratio(reference: list[float], other: list[float]) -> float:
  return round(statistics.median(a / b for a, b in zip(reference, other, strict=True)), 1)


def main() -> None:
  parser = argparse.ArgumentParser(description="Exact thresholds against a sort.")
  parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 25_000_000])
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--out", default="benchmarks/results/threshold_cpu.json")
  options = parser.parse_args()
  device = jax.devices()[0]
  report = {
    "what": "jnp.sort's time over the form's time in the same round, median over rounds",
    "command": "python -m benchmarks.threshold",
    "density": DENSITY,
    "rounds": options.rounds,
    "entries": {str(size): measure(size, options.rounds) for size in options.sizes},
    "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
    "processor": processor(),
    "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    "versions": {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__},
  }
  path = Path(options.out)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(report, indent=1) + "\n")
  print(f"{'entries':>12}  {'':28} {'wall ms':>10} {'cpu ms':>10} {'x sort, wall':>12} {'cpu':>8}")
  for size, rows in report["entries"].items():
    for name, row in rows.items():
      print(f"{int(size):>12,}  {name:28} " + "{:>10,} {:>10,} {:>12} {:>8}".format(*row.values()))


if __name__ == "__main__":
  main()
