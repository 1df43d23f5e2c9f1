"""Runs the cases of a format in child processes, or in this one, and counts what becomes of them."""

import importlib
import json
import os
import random
import resource
import select
import subprocess
import sys
import time
from collections import Counter
from typing import Any

FORMATS = (
  "safetensors",
  "weights",
  "pth",
  "orbax",
  "packed",
  "tflite",
  "onnx",
  "stablehlo",
  "workdir",
  "logits",
  "images",
)
SILENCE, START = 60, 600  # seconds of a hang, and of a start that fails
SLOW = 5  # seconds of a case that is too slow
MOST = 50  # failures before it gives up


def cases(name: str) -> Any:
  """Returns the module of a format's cases."""
  return importlib.import_module(f"scripts.drills.fuzz.{name}")


def run(name: str, numbers: range, seed: int) -> list[dict[str, Any]]:
  """Runs cases in this process; returns the lines that `serve` prints."""
  found: list[dict[str, Any]] = []
  serve(name, numbers, seed, found.append)
  return found


def serve(name: str, numbers: range, seed: int, say: Any) -> None:
  """Runs cases and says of each its number, outcome, seconds and the MiB that the process has grown by."""
  module = cases(name)
  files = module.seeds()
  for content in files:
    module.case(content)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for number in numbers:
    content = mutant(name, files, number, seed)
    start = time.process_time()
    try:
      outcome, failed = module.case(content), False
    except Exception as error:
      outcome, failed = f"{type(error).__name__}: {error}"[:300], True
    spent = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    failed = failed or spent > SLOW or grown > module.LIMIT
    say(
      {"case": number, "outcome": outcome, "failed": failed, "seconds": round(spent, 4), "grown_mib": round(grown, 1)}
    )


def mutant(name: str, files: list[bytes], number: int, seed: int) -> bytes:
  """Returns the file of a case."""
  return cases(name).mutant(random.Random(f"{seed} {number}"), files)


class Drill:
  """The figures of a drill while its children run."""

  def __init__(self) -> None:
    self.outcomes: Counter[str] = Counter()
    self.failures: list[dict[str, Any]] = []
    self.seconds = self.slowest = self.grown = 0.0
    self.done = 0

  def take(self, line: dict[str, Any]) -> None:
    self.done += 1
    self.outcomes[line["outcome"]] += 1
    self.seconds += line["seconds"]
    self.slowest, self.grown = max(self.slowest, line["seconds"]), max(self.grown, line["grown_mib"])
    if line["failed"]:
      self.fail(line)

  def fail(self, line: dict[str, Any]) -> None:
    self.failures.append(line)
    print(line, file=sys.stderr, flush=True)

  def figures(self) -> dict[str, Any]:
    each = 1e3 * self.seconds / max(self.done, 1)
    return {
      "cases": self.done,
      "failures": self.failures,
      "outcomes": dict(self.outcomes.most_common()),
      "cpu_ms_per_case": round(each, 2),
      "slowest_cpu_s": round(self.slowest, 3),
      "grown_mib": round(self.grown, 1),
    }


def drill(name: str, count: int, seed: int, minutes: float) -> dict[str, Any]:
  """Returns the figures of so many cases, or of those that a time allowed."""
  found, at, end = Drill(), 0, time.monotonic() + 60 * minutes
  while at < count and len(found.failures) < MOST and time.monotonic() < end:
    command = [sys.executable, "-m", "scripts.drills.fuzz", f"--format={name}", f"--cases={count}", f"--seed={seed}"]
    child = subprocess.Popen([*command, f"--child={at}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    at, silent = _listen(child, at, found, end)
    child.kill()
    status = child.wait()
    if at < count and time.monotonic() < end:
      why = "it hangs" if silent else f"the process ended with status {status}"
      found.fail({"case": at, "outcome": why, "failed": True})
      at += 1
  return found.figures()


def _listen(child: subprocess.Popen[bytes], at: int, found: Drill, end: float) -> tuple[int, bool]:
  """Takes a child's lines; returns the first case that it did not answer, and whether it only fell silent."""
  assert child.stdout is not None
  held, first = b"", at
  while time.monotonic() < end:
    ready, _, _ = select.select([child.stdout], [], [], SILENCE if at > first else START)
    if not ready:
      return at, True
    read = os.read(child.stdout.fileno(), 2**16)
    if not read:
      return at, False
    *lines, held = (held + read).split(b"\n")
    for line in lines:
      found.take(json.loads(line))
      at += 1
  return at, False
