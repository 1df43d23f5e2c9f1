"""Start-up time of `--help`, of a mistake in a config, and of the digits job with a cold and a warm compilation cache.

    python -m benchmarks.start_up

CPU seconds of whole processes (user and system, all threads), the smallest of several runs; the job once per cache.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time

from benchmarks.common import load, write

COMPRESS = [sys.executable, "-m", "scripts.compress"]
CONFIG = "--config=configs/digits.py"


def run(command: list[str], status: int, **variables: str) -> tuple[float, float]:
  """Returns (CPU seconds, wall seconds) of a process that must end with `status`."""
  before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
  done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
  wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
  if done.returncode != status:
    raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
  return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
  figures: dict[str, float] = {}
  before = load()
  for name, words, status in (
    ("--help", ["--help"], 0),
    ("a misspelt key", [CONFIG, "--workdir=unused", "--config.sed=1"], 2),
    ("an unknown method", [CONFIG, "--workdir=unused", "--config.stages.pruned.sparsity.name=magnitud"], 2),
  ):
    figures[f"{name}, CPU s"] = round(min(run([*COMPRESS, *words], status)[0] for _ in range(5)), 2)
  with tempfile.TemporaryDirectory() as folder:
    for name in ("first", "second"):
      words = [CONFIG, f"--workdir={folder}/{name}"]
      cpu, wall = run([*COMPRESS, *words], 0, JAX_COMPILATION_CACHE_DIR=f"{folder}/cache")
      figures |= {f"digits, {name} start, CPU s": round(cpu, 1), f"digits, {name} start, wall s": round(wall, 1)}
  out, what = "benchmarks/results/start_up_cpu.json", "CPU and wall seconds of whole processes"
  write(out, what, "python -m benchmarks.start_up", before, {"figures": figures})
  for name, value in figures.items():
    print(f"{name:32} {value:8.2f}")


if __name__ == "__main__":
  main()
