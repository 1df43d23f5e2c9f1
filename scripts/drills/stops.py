"""Stops runs by signals, starts two in one directory, and lets the disk fill up; then goes on, and compares the bits.

    python -m scripts.drills.stops --signals=60 --disks=20 --seconds=1800

Full disks are small file systems in memory, which need root and `mount`; without them this part is left out, and the
table says so. A run is to end within ten seconds of a signal with one sentence and 128 + its number, and with status 2
and one sentence on a full disk; a second run in a directory is to be refused within a second of its lock.
"""

import contextlib
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from absl import flags

from leanax.pipeline.config import flags as program

if TYPE_CHECKING:
  from scripts.drills import runs

_SIGNALS = flags.DEFINE_integer("signals", 60, "Signals to send.", lower_bound=0)
_DISKS = flags.DEFINE_integer("disks", 20, "Full disks to meet.", lower_bound=0)
_SECONDS = flags.DEFINE_float("seconds", 1800.0, "Seconds after which no further run is begun.")
_SEED = flags.DEFINE_integer("drill_seed", 0, "Of the choice of signals, moments and sizes.")
NUMBERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
LONGEST = 10.0


def main() -> None:
  from scripts.drills import runs

  runs.load()
  found: dict[str, Any] = {"wrong": []}
  with tempfile.TemporaryDirectory(prefix="leanax-stops") as name:
    scratch, chosen = pathlib.Path(name), random.Random(_SEED.value)
    whole = runs.Run(scratch / "whole").wait()
    assert whole.status == 0, whole.text
    end, desired = time.monotonic() + _SECONDS.value, runs.contents(scratch / "whole")
    took = runs.Run(scratch / "timed").wait().seconds  # with all of it compiled
    second(scratch, found)
    signals(scratch, _SIGNALS.value, end, took, desired, chosen, found)
    disks(scratch, _DISKS.value, end, desired, chosen, found)
  for key, value in found.items():
    print(f"{key}: {value}")
  if found["wrong"]:
    sys.exit(1)


def signals(
  scratch: pathlib.Path,
  count: int,
  end: float,
  took: float,
  desired: dict[str, bytes],
  chosen: random.Random,
  found: dict[str, Any],
) -> None:
  """Sends signals at random moments, each to a run that goes on with the one before."""
  from scripts.drills import runs

  seconds, place = [], 0
  found |= {"signals": 0, "runs stopped in a stage": 0, "finished runs": 0}
  while found["signals"] < count and time.monotonic() < end:
    folder, place = scratch / f"signals{place}", place + 1
    for _ in range(4):
      number, run = chosen.choice(NUMBERS), runs.Run(folder)
      # Past the start of the interpreter, where the handlers are not there yet.
      moment = run.started + chosen.uniform(0.5, took)
      if not run.until(lambda moment=moment: time.monotonic() > moment):
        run.wait()
        break
      sent = time.monotonic()
      run.kill(number)
      if chosen.random() < 0.2:
        time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
          run.kill(number)  # an impatient user
      ended = run.wait()
      seconds.append(time.monotonic() - sent)
      found["signals"] += 1
      found["runs stopped in a stage"] += "stopped at step" in ended.text
      check(ended, 128 + number, r"^(stopped .*the same command goes on.*)$", found)
      if seconds[-1] > LONGEST:
        found["wrong"].append(f"{seconds[-1]:.1f} s from {number.name} to the end")
    finish(folder, desired, found)
  if seconds:
    found["seconds from a signal to the end"] = (
      f"median {sorted(seconds)[len(seconds) // 2]:.2f}, most {max(seconds):.2f}"
    )


def second(scratch: pathlib.Path, found: dict[str, Any]) -> None:
  """Starts a second program in a directory that is in use."""
  from leanax.pipeline import lock
  from scripts.drills import runs

  first = runs.Run(scratch / "two")
  first.until((scratch / "two" / lock.NAME).exists)
  words = [sys.executable, "-m", "scripts.compress", f"--config={runs.CONFIG}", f"--workdir={scratch / 'two'}"]
  started = time.monotonic()
  other = subprocess.run(words, capture_output=True, text=True, check=False)
  found["seconds until a second program is refused, with its start"] = f"{time.monotonic() - started:.2f}"
  started = time.monotonic()
  plain = subprocess.run([*words[:3], "--help"], capture_output=True, text=True, check=False)
  found["seconds of --help, for comparison"] = f"{time.monotonic() - started:.2f}"
  assert plain.returncode == 0, plain.stderr
  named = f"process {first.process} on host"
  if other.returncode != 2 or named not in other.stderr or other.stderr.count("\n") != 1:
    found["wrong"].append(("second program", other.returncode, other.stderr[-500:]))
  first.kill(signal.SIGKILL)
  first.wait()
  found["after kill -9 the lock is free"] = runs.Run(scratch / "two").wait().status == 0


def disks(
  scratch: pathlib.Path, count: int, end: float, desired: dict[str, bytes], chosen: random.Random, found: dict[str, Any]
) -> None:
  """Runs on disks that fill up at any place, then with room."""
  from scripts.drills import runs

  found |= {"full disks": 0, "full disks met": 0}
  bytes_used = sum(path.stat().st_size for path in (scratch / "whole").rglob("*") if path.is_file())
  files_used = sum(1 for _ in (scratch / "whole").rglob("*"))
  while found["full disks"] < count and time.monotonic() < end:
    # A checkpoint is made beside two others, so that a run needs more than it leaves.
    few = chosen.random() < 0.4
    limit = chosen.randint(8, files_used * 2) if few else chosen.randint(16, bytes_used // 512)
    with mounted(scratch / "disk", f"nr_inodes={limit}" if few else f"size={limit}k") as disk:
      if disk is None:
        found["full disks"] = "left out: they need root and mount"
        return
      ended = runs.Run(disk / "run").wait()
      found["full disks"] += 1
      if ended.status:
        found["full disks met"] += 1
        check(ended, 2, r"^(error: .*(?:No space left on device|Disk quota exceeded).*)$", found)
      remount(scratch / "disk", "nr_inodes=0,size=1g")
      finish(disk / "run", desired, found)


def check(ended: "runs.Ended", status: int, words: str, found: dict[str, Any]) -> None:
  """Notes an end without the status, or with anything but one sentence, or with a traceback."""
  sentences = re.findall(words, ended.text, re.MULTILINE)
  # A run that was at its end when the signal came has ended as any other.
  if ended.tracebacks or ended.status not in (status, 0) or (ended.status and len(sentences) != 1):
    found["wrong"].append((ended.status, sentences, ended.text[-1500:]))


def finish(folder: pathlib.Path, desired: dict[str, bytes], found: dict[str, Any]) -> None:
  """Runs to the end, and notes what differs from the unbroken run."""
  from scripts.drills import runs

  ended = runs.Run(folder).wait()
  found["finished runs"] = found.get("finished runs", 0) + 1
  if ended.status or ended.tracebacks or runs.contents(folder) != desired or runs.left_over(folder):
    found["wrong"].append(("differs", ended.status, runs.left_over(folder), ended.text[-1500:]))


@contextlib.contextmanager
def mounted(place: pathlib.Path, options: str) -> Generator[pathlib.Path | None]:
  """Yields a file system in memory; None where none can be mounted."""
  place.mkdir(exist_ok=True)
  words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
  try:
    done = subprocess.run(words, capture_output=True, check=False).returncode == 0
  except FileNotFoundError:
    done = False
  try:
    yield place if done else None
  finally:
    if done:
      subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: pathlib.Path, options: str) -> None:
  """Gives a mounted file system other limits."""
  subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


if __name__ == "__main__":
  program.run(main, config=False)
