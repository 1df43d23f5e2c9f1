"""Runs of `scripts.compress` in processes that are forked from one which has imported everything: a start costs little.

A forked run is a process of its own, with its own devices, files and signals, which may be killed anywhere.
"""

import os
import pathlib
import re
import runpy
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

CONFIG = pathlib.Path(__file__).with_name("tiny.py")
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# What a change of a file belongs to, by its path in the run's directory; the first that matches.
KINDS = {
  "save": r"checkpoints/",
  "model": r"models/",
  "export": r"files/",
  "report": r"report\.|result\.json",
  "metrics": r"metrics\.jsonl|tensorboard/",
  "other": r"",
}


class Ended(NamedTuple):
  """How a run ended.

  Attributes:
    status: its exit status; minus the number of the signal that killed it.
    text: what it wrote to stderr.
    seconds: from its start to its end.
  """

  status: int
  text: str
  seconds: float

  @property
  def tracebacks(self) -> int:
    return self.text.count("Traceback (most recent call last)")


class Run:
  """A run of the drill's experiment in `folder`; a second one in the same folder goes on.

  Args:
    folder: the workdir.
    at: (kind, n): it kills itself before its n-th change of a file of this kind, counted from 1.
    count: a file to which it writes the number of such changes by kind, when it ends.
    more: further words of the command.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    at: tuple[str, int] | None = None,
    count: pathlib.Path | None = None,
    more: Sequence[str] = (),
  ):
    self.started = time.monotonic()
    self.errors = folder.parent / f"{folder.name}.stderr"
    sys.stdout.flush()
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # no device is in use here, and no thread of jax runs
      self.process = os.fork()
    if not self.process:
      _child(folder, self.errors, at, count, more)

  def is_over(self) -> bool:
    """Returns whether it has ended; `wait` tells how."""
    return os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

  def wait(self, seconds: float = 300.0) -> Ended:
    """Waits for its end; kills it after so many seconds, which gives the status -9."""
    end = time.monotonic() + seconds
    while not self.is_over():
      if time.monotonic() > end:
        self.kill(signal.SIGKILL)
        end = float("inf")
      time.sleep(0.002)
    status = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
    return Ended(status, self.errors.read_text(errors="replace"), time.monotonic() - self.started)

  def kill(self, number: int) -> None:
    """Sends it a signal."""
    os.kill(self.process, number)

  def until(self, reached: Callable[[], bool], seconds: float = 120.0) -> bool:
    """Waits until something is so; returns whether it is while the run goes on."""
    end = time.monotonic() + seconds
    while not reached() and time.monotonic() < end:
      if self.is_over():
        return False
      time.sleep(0.002)
    return reached()


def load() -> None:
  """Imports what a run imports, before the first one is forked."""
  import leanax.engine.store.checkpoint
  import leanax.pipeline.compress
  import leanax.pipeline.environment
  import leanax.pipeline.seeds
  import leanax.pipeline.stages.train
  import leanax.pipeline.tables.reproduce

  leanax.pipeline.environment.use_compilation_cache()


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  """Returns the files of a run that are equal in equal runs."""
  paths = [folder / "metrics.jsonl", *(folder / "models").glob("*"), *(folder / "files").glob("*.tflite")]
  return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}


def left_over(folder: pathlib.Path) -> list[str]:
  """Returns what a finished run must not hold: locks, halves of files, halves of checkpoints."""
  return [str(path) for path in folder.rglob("*") if re.search(r"\.part$|\.lock$|orbax-checkpoint-tmp", path.name)]


def kind_of(path: str) -> str:
  """Returns the kind of a change by the path in the run's directory."""
  return next(kind for kind, pattern in KINDS.items() if re.search(pattern, path))


def _child(
  folder: pathlib.Path,
  errors: pathlib.Path,
  at: tuple[str, int] | None,
  count: pathlib.Path | None,
  more: Sequence[str],
) -> None:
  """Runs the program in a forked process, which it ends."""
  status = 70
  try:
    for stream, path in ((1, os.devnull), (2, str(errors))):
      opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
      os.dup2(opened, stream)
      os.close(opened)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seen = _watch(folder, at)
    sys.argv = ["scripts/compress.py", f"--config={CONFIG}", f"--workdir={folder}", *more]
    try:
      runpy.run_module("scripts.compress", run_name="__main__")
      status = 0
    except SystemExit as ended:
      status = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except BaseException:  # as the interpreter does
      traceback.print_exc()
      status = 1
    for thread in threading.enumerate():  # as the interpreter does
      if thread is not threading.current_thread() and not thread.daemon:
        thread.join()
    if count is not None:
      count.write_text("\n".join(f"{kind} {number}" for kind, number in seen.items()))
  finally:
    os._exit(status)


def _watch(folder: pathlib.Path, at: tuple[str, int] | None) -> dict[str, int]:
  """Counts the changes of a run's files by kind from now on, and kills this process before a chosen one."""
  seen, root = dict.fromkeys(KINDS, 0), f"{folder}/"

  def hook(event: str, arguments: tuple[object, ...]) -> None:
    if event not in EVENTS:
      return
    path = arguments[event == "os.rename"]  # of a file that gets another name, that one
    path = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(path, str) or not path.startswith(root):
      return
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
      return
    kind = kind_of(path.removeprefix(root))
    seen[kind] += 1
    if at == (kind, seen[kind]):
      os.kill(os.getpid(), signal.SIGKILL)

  sys.addaudithook(hook)
  return seen
