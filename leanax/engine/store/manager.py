"""Orbax's checkpoint manager, kept quiet, and made to bring a step to the disk before it has its name."""

import contextlib
import functools
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from leanax.core import files

TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a step's directory until it is complete


def manager(directory: Path, policy: Any, read_only: bool) -> Any:
  """Returns Orbax's manager of a directory that is there; `policy` says which steps are kept."""
  import orbax.checkpoint as ocp

  def sync() -> None:  # Orbax calls it when a step is complete and before its directory has its name
    for path in listed(directory):
      if TEMPORARY in path.name:
        files.sync_tree(path)

  return ocp.CheckpointManager(
    directory,
    options=ocp.CheckpointManagerOptions(
      create=False,
      cleanup_tmp_directories=not read_only,
      preservation_policy=policy,
      # Made in the background, a directory that cannot be made is waited for without an end.
      async_options=ocp.options.AsyncOptions(post_finalization_callback=sync, create_directories_asynchronously=False),
    ),
  )


class Preserve:
  """Orbax's preservation policy: the newest `keep` steps and the best one. (Orbax's own loses metrics on a restart.)

  Args:
    keep: the number of newest steps to keep.
    best: the best one of some steps, or None.
  """

  def __init__(self, keep: int, best: Callable[[Sequence[int]], int | None]):
    self._keep, self._best = keep, best

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
    """Returns which of Orbax's checkpoints are kept."""
    del context
    steps = sorted(info.step for info in checkpoints)
    kept = {*steps[-self._keep :], self._best(steps)}
    return [info.step in kept for info in checkpoints]


@contextlib.contextmanager
def plain(directory: Path) -> Generator[Path]:
  """Gives a path of the directory that Orbax and TensorStore read as it is: they take some characters for patterns."""
  if not re.search(r"[\\\[\]*?:]", str(directory)):
    yield directory
    return
  with tempfile.TemporaryDirectory(prefix="leanax") as folder:
    link = Path(folder) / "checkpoints"
    link.symlink_to(directory)
    yield link


@functools.cache
def silence() -> None:
  """Keeps off the screen what Orbax and TensorStore print of failed saves and damaged steps, with tracebacks.

  The error itself is raised, and said in a sentence. What else waits for it is told later, by threads of theirs that
  may outlive the checkpoints, so this stays as it is until the program ends.
  """
  theirs = re.compile(r"OCDBT|local file|tensorstore|orbax|Event loop is closed")

  def shown(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return "orbax" not in Path(record.pathname).parts and not (error and theirs.search(str(error)))

  for name in ("absl", "asyncio"):
    logging.getLogger(name).addFilter(shown)
  before = sys.unraisablehook

  def unraisable(given: Any) -> None:
    if not theirs.search(str(given.exc_value)):
      before(given)

  sys.unraisablehook = unraisable


def listed(directory: Path) -> list[Path]:
  """Returns what a directory holds; nothing where it cannot be read."""
  try:
    return list(directory.iterdir())
  except OSError:
    return []


def reason(error: BaseException) -> str:
  """Returns why a file could not be written: the system's words where an error or its text has some."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  if found := re.search(r"os_error_code='?(\d+)", str(error)):  # of TensorStore
    return os.strerror(int(found[1]))
  return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
