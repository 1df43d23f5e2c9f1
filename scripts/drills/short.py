"""The drills in short: one run meets a second program, a signal and a kill, and comes to the end of the unbroken one.

python -m scripts.drills.short
"""

import pathlib
import signal
import tempfile
import time

from leanax.pipeline.config import flags as program

ONE = ("--config.run=float,",)  # one of the stages is enough


def main() -> None:
  from scripts.drills import runs

  runs.load()
  with tempfile.TemporaryDirectory(prefix="leanax-short") as name:
    scratch = pathlib.Path(name)
    whole, folder = scratch / "whole", scratch / "run"
    ended = runs.Run(whole, more=ONE).wait()
    assert ended.status == 0, ended

    first = runs.Run(folder, more=ONE)
    assert first.until((folder / "checkpoints/float/4").exists), first.wait()
    second = runs.Run(folder, more=ONE).wait()
    assert second.status == 2 and f"in use by another program: process {first.process} on host" in second.text, second
    sent = time.monotonic()
    first.kill(signal.SIGTERM)
    ended, seconds = first.wait(), time.monotonic() - sent
    assert ended.status == 128 + signal.SIGTERM and ended.text.count("stopped ") == 1, ended
    assert seconds < 10 and not ended.tracebacks, ended

    ended = runs.Run(folder, at=("save", 20), more=ONE).wait()
    assert ended.status == -signal.SIGKILL and not ended.tracebacks, ended
    ended = runs.Run(folder, more=ONE).wait()
    assert ended.status == 0 and not ended.tracebacks and not runs.left_over(folder), (ended, runs.left_over(folder))
    assert runs.contents(folder) == runs.contents(whole)
    print(f"a second program is refused, a stop takes {seconds:.1f} s, and the bits are those of the unbroken run")


if __name__ == "__main__":
  program.run(main, config=False)
