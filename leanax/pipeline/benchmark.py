"""Latency of exported files in the real runtime, in turns: changes in the machine's speed reach all files alike."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leanax import deploy
from leanax.deploy import Latency, Runner
from leanax.pipeline import energy
from leanax.pipeline.environment import environment
from leanax.pipeline.tables.tables import ABSENT, AS_FAST, TOO_FEW, interval, joules, microseconds, size, times

NOISE = 0.05  # the share below which a difference of two latencies is not one, however steady it was in one process


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


def benchmark(
  files: Sequence[str], *, threads: Sequence[int] = (1,), rounds: int = 20, runs: int = 50
) -> dict[str, Any]:
  """Measures exported files, of any formats, at batch 1.

  Args:
    files: paths.
    threads: numbers of threads of the runtime; each file is measured with each.
    rounds: rounds in which each file is measured once.
    runs: calls per round.

  Returns:
    {"environment", "models": [{"name", "bytes", "threads", "wall_us", "wall_min_us", "cpu_us", "rounds", "ratio",
    "as_fast", "peak_bytes"}]}: the median over the rounds of the round's median wall time, the least wall time, the
    least process CPU time, the rounds, the median of the paired ratios to the first row (2 is twice as fast), the rows
    that it cannot be told from, and the memory that a process takes at most for the runtime, the file and one inference
    (None where it cannot be measured). "joules" is there where the processor counts them, and "no_joules", which says
    why not, elsewhere.
  """
  names = {file: Path(file).name for file in files}
  names = {file: name if [*names.values()].count(name) == 1 else file for file, name in names.items()}
  keys = {_label(name, count, threads): (file, count) for count in threads for file, name in names.items()}
  opened = {key: deploy.open_file(file, threads=count) for key, (file, count) in keys.items()}
  found = _figures(opened, rounds, runs)
  memory = dict(zip(keys, peaks([*keys.values()]), strict=True))
  base = np.array(found[next(iter(keys))]["rounds"])
  rows = [
    {
      "name": names[file],
      "bytes": opened[key].bytes,
      "threads": count,
      "wall_us": found[key]["wall_median"],
      "wall_min_us": found[key]["wall_min"],
      "cpu_us": found[key]["cpu_min"],
      "rounds": rounds,
      "ratio": float(np.median(base / np.array(found[key]["rounds"]))),
      "as_fast": found[key]["as_fast"],
      "peak_bytes": memory[key],
      **{name: found[key][name] for name in ("joules", "no_joules") if name in found[key]},
    }
    for key, (file, count) in keys.items()
  ]
  return {"environment": environment(), "models": rows}


def _label(name: str, count: int, threads: Sequence[int]) -> str:
  """Returns a row's name; with its threads where files are measured with several numbers of them."""
  return name if len(threads) == 1 else f"{name} on {count} thread{'s' * (count > 1)}"


def latencies(files: Mapping[str, str], runs: int) -> dict[str, dict[str, Any]]:
  """Returns the latency of each file, all measured in turns on one thread, and which of the others are as fast.

  Args:
    files: paths by names.
    runs: calls of each file over all rounds, of which there are 20 at most.

  Returns:
    By the same names {"wall_min", "wall_median", "cpu_min", "runs", "threads", "rounds", "as_fast"}: microseconds, the
    medians of each round, and the names of files that cannot be told from it (`as_fast`). "joules", of one inference,
    is there where the processor counts them, and "no_joules", a text that says why not, elsewhere.
  """
  rounds = max(min(runs // 10, 20), 1)
  return _figures({name: deploy.open_file(path) for name, path in files.items()}, rounds, -(-runs // rounds))


def _figures(files: Mapping[str, Runner], rounds: int, runs: int) -> dict[str, dict[str, Any]]:
  """Returns the figures of opened files, measured in turns: see `latencies`."""
  found = interleaved(files, rounds, runs)
  medians = {name: [latency.wall_median for latency in each] for name, each in found.items()}
  counted, why = energy.measure({name: file.repeat() for name, file in files.items()})
  return {
    name: {
      "wall_min": min(latency.wall_min for latency in each),
      "wall_median": float(np.median(medians[name])),
      "cpu_min": min(latency.cpu_min for latency in each),
      "runs": rounds * runs,
      "threads": each[0].threads,
      "rounds": medians[name],
      "as_fast": [other for other in files if other != name and as_fast(medians[name], medians[other])],
      **({"joules": counted[name]} if counted else {"no_joules": why}),
    }
    for name, each in found.items()
  }


def as_fast(one: Sequence[float], other: Sequence[float]) -> bool:
  """Returns whether two files' latencies are within noise, of the medians of the same rounds.

  They are unless the 95 % interval of the paired ratio leaves out 1, and the ratio is further from it than `NOISE`.
  """
  logs = np.log(np.array(one) / np.array(other))
  mean, half = interval(logs.tolist()) if len(logs) > 1 else (float(logs[0]), np.inf)
  return bool(abs(mean) <= max(half, np.log1p(NOISE)))


_PEAKS = """
import json, os, re, sys
from leanax import deploy
from leanax.deploy import trial

def memory(name):
  return 1024 * int(re.search(name + r":\\s*(\\d+) kB", open("/proc/self/status").read()).group(1))

def added(file, threads):
  trial.note(open(file, "rb").read())  # it was opened before; a first run would be measured with it
  open("/proc/self/clear_refs", "w").write("5")  # the high-water mark is set to what is held now
  held = memory("VmRSS")
  deploy.open_file(file, threads=threads).repeat()()
  return max(memory("VmHWM") - held, 0)

for file, threads in json.loads(sys.argv[1]):  # each in a process that has loaded no runtime yet
  read, write = os.pipe()
  if not os.fork():
    try:
      os.write(write, str(added(file, threads)).encode())
    finally:
      os._exit(0)
  os.close(write)
  os.wait()
  print(os.read(read, 64).decode() or "none")
"""


def peaks(files: Sequence[tuple[str, int]]) -> list[int | None]:
  """Returns the most bytes that the runtime, a file and one inference add to a process; None where it is not known.

  It is read from Linux's /proc.

  Args:
    files: paths, each with the threads that the runtime may use.
  """
  named = json.dumps([(str(Path(file).absolute()), threads) for file, threads in files])
  root = Path(__file__).resolve().parents[2]
  done = subprocess.run([sys.executable, "-c", _PEAKS, named], capture_output=True, text=True, check=False, cwd=root)
  found = [int(line) if line.isdigit() else None for line in done.stdout.split()]
  return found if len(found) == len(files) else [None] * len(files)


def table(result: dict[str, Any]) -> str:
  """Returns the figures for a terminal."""
  rows = result["models"]
  threads = [*dict.fromkeys(row["threads"] for row in rows)]
  first = _label(rows[0]["name"], rows[0]["threads"], threads)
  heads = ["file", "threads", "size", "median", "least", "CPU time"]
  measured = [head for head, key in (("peak memory", "peak_bytes"), ("energy", "joules")) if rows[0].get(key)]
  lines = [[*heads, *measured, f"against {first}", "within noise of"]]
  for row in rows:
    cells = [row["name"], str(row["threads"]), size(row["bytes"])]
    cells += [microseconds(row[key]) for key in ("wall_us", "wall_min_us", "cpu_us")]
    cells += [size(row["peak_bytes"]) if row.get("peak_bytes") else ABSENT] if "peak memory" in measured else []
    cells += [joules(row["joules"])] if "energy" in measured else []
    speed = AS_FAST if first in row["as_fast"] else times(row["ratio"])
    words = ABSENT if row is rows[0] else TOO_FEW if row["rounds"] < 2 else speed
    same = row["as_fast"] if row["rounds"] > 1 else []
    lines.append([*cells, words, ", ".join(same) or ABSENT])
  widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
  left = (0, len(widths) - 1)
  text = [
    "  ".join(c.ljust(w) if k in left else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths))).rstrip()
    for line in lines
  ]
  machine = result["environment"]
  why = [f"the energy was not measured: {rows[0]['no_joules']}"] if rows[0].get("no_joules") else []
  return "\n".join([*text, *why, f"{machine['processor']}, {machine['instruction sets']}, {machine['cores']} cores"])
