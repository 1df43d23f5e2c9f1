"""Kills runs, at random and at changes of their files, and compares what comes of them with an unbroken run.

    python -m scripts.drills.kills --kills=300 --seconds=3600

Half of the kills fall at a random time. The others fall before the n-th change of a file of one kind: a checkpoint, a
model, an exported file, the report, metrics, or another one. A run is killed up to five times, each time by the same
command again, and then comes to its end: its models, exported files and metrics are to be equal to the last bit.
"""

import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from typing import Any

from absl import flags

from leanax.pipeline.config import flags as program

_KILLS = flags.DEFINE_integer("kills", 300, "Kills to make.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 3600.0, "Seconds after which no further run is begun.")
_SEED = flags.DEFINE_integer("drill_seed", 0, "Of the choice of kills.")
CHAIN = 5


def main() -> None:
  from scripts.drills import runs

  runs.load()
  with tempfile.TemporaryDirectory(prefix="leanax-kills") as scratch:
    found = drill(pathlib.Path(scratch), _KILLS.value, _SECONDS.value, _SEED.value)
  for key, value in found.items():
    print(f"{key}: {value}")
  if found["runs that differ"] or found["tracebacks"] or found["left over"]:
    sys.exit(1)


def drill(scratch: pathlib.Path, kills: int, seconds: float, seed: int) -> dict[str, Any]:
  """Returns the figures of the drill.

  Args:
    scratch: an empty directory.
    kills: to make.
    seconds: after which no further run is begun.
    seed: of the choice.
  """
  from scripts.drills import runs

  end, chosen = time.monotonic() + seconds, random.Random(seed)
  whole, counts = scratch / "whole", scratch / "counts"
  assert runs.Run(whole, count=counts).wait().status == 0, (scratch / "whole.stderr").read_text()
  desired = runs.contents(whole)
  changes = {kind: int(number) for kind, number in (line.split() for line in counts.read_text().splitlines())}
  changes = {kind: number for kind, number in changes.items() if number}
  again = scratch / "again"
  took = runs.Run(again).wait()  # with all of it compiled
  assert took.status == 0 and runs.contents(again) == desired
  made = dict.fromkeys(["random", *changes], 0)
  found = {"finished runs": 0, "runs that differ": [], "tracebacks": [], "left over": []}
  while sum(made.values()) < kills and time.monotonic() < end:
    folder = scratch / f"run{found['finished runs']}"
    for _ in range(CHAIN):
      if sum(made.values()) >= kills or time.monotonic() > end:
        break
      kind = chosen.choice(["random"] * len(changes) + [*changes])
      if kind == "random":
        ended = runs.Run(folder).wait(chosen.uniform(0, took.seconds))
      else:
        ended = runs.Run(folder, at=(kind, chosen.randint(1, changes[kind]))).wait()
      if ended.tracebacks:
        found["tracebacks"].append(ended.text)
      if ended.status != -signal.SIGKILL:
        break
      made[kind] += 1
    ended = runs.Run(folder).wait()
    if ended.status or runs.contents(folder) != desired or not (folder / "report.html").is_file():
      found["runs that differ"].append((ended.status, ended.text[-500:]))
    if ended.tracebacks:
      found["tracebacks"].append(ended.text)
    found["left over"] += runs.left_over(folder)
    found["finished runs"] += 1
    shutil.rmtree(folder, ignore_errors=True)
  by_kind = ", ".join(f"{kind} {number}" for kind, number in made.items())
  return {"kills": sum(made.values()), "by what they hit": by_kind, **found}


if __name__ == "__main__":
  program.run(main, config=False)
