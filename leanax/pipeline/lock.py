"""One program at a time writes into a run's directory: a lock that the system gives back when the program dies.

Reading needs none. This file imports no heavy library, so that the second program is refused at once.
"""

import contextlib
import datetime
import errno
import json
import os
import pathlib
import socket
import sys
import time
from collections.abc import Generator, Iterator
from typing import Any

from leanax.core import files
from leanax.core.errors import UserError

NAME = ".lock"  # in the directory, while a program writes there
LONGEST = 3500  # characters of a directory's path; the files in it have some more, and systems take 4096
WITHOUT = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)  # no locks on this file system


@contextlib.contextmanager
def held(workdir: str | os.PathLike[str]) -> Generator[pathlib.Path]:
  """Holds a run's directory: makes it, locks it, and removes what killed programs left half written in it.

  A directory that was made here and holds nothing at the end is removed again.

  Args:
    workdir: the directory.

  Yields:
    Its path.

  Raises:
    UserError: another program holds it, a directory around it or one right in it (its process, host and time are
      named); or the directory cannot be made, or written into.
  """
  folder = pathlib.Path(workdir)
  if not str(workdir).strip():
    raise UserError("--workdir is empty; expected a directory such as runs/digits")
  if len(os.path.abspath(folder)) > LONGEST:
    raise UserError(f"workdir {str(folder)[:40]!r}... is longer than {LONGEST} characters; expected a shorter one")
  try:
    made = _make(folder)
  except OSError as error:
    raise UserError(f"workdir {_short(folder)!r} cannot be written: {error.strerror}") from error
  try:
    for other in _around(folder):
      if owner := _owner(other):
        raise _taken(folder, other, owner)
    with _locked(folder):
      files.remove_parts(folder)
      yield folder
  finally:
    for path in reversed(made):
      with contextlib.suppress(OSError):  # it holds something now
        path.rmdir()


def _make(folder: pathlib.Path) -> list[pathlib.Path]:
  """Makes a directory, and returns those that there were not, outermost first."""
  missing = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
  folder.mkdir(parents=True, exist_ok=True)
  return missing


def _around(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields those around a directory, whose programs may write into it, and those in it, as seeds have their own."""
  yield from folder.absolute().parents
  yield from (path for path in folder.iterdir() if path.is_dir())


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Generator[None]:
  import fcntl

  path = folder / NAME
  while True:
    try:
      opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
      raise UserError(f"workdir {_short(folder)!r} cannot be written: {error.strerror}") from error
    with contextlib.closing(os.fdopen(opened, "r+", encoding="utf-8")) as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        raise _taken(folder, folder, _owner(folder) or {}) from None
      except OSError as error:
        if error.errno not in WITHOUT:
          raise UserError(f"workdir {_short(folder)!r} cannot be locked: {error.strerror}") from error
        print(
          f"warning: the file system of {_short(folder)!r} has no locks; let no second program write there",
          file=sys.stderr,
        )
      if not _is_at(file.fileno(), path):  # its last owner has removed it meanwhile
        continue
      file.truncate()
      since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
      json.dump({"process": os.getpid(), "host": socket.gethostname(), "since": since}, file)
      file.flush()
      try:
        yield
      finally:
        with contextlib.suppress(OSError):
          path.unlink()
      return


def _is_at(opened: int, path: pathlib.Path) -> bool:
  try:
    return os.path.samestat(os.fstat(opened), path.stat())
  except FileNotFoundError:
    return False


def _owner(folder: pathlib.Path) -> dict[str, Any]:
  """Returns who holds a directory, with values None where it is not known; {} where no other process does."""
  import fcntl

  try:
    file = (folder / NAME).open(encoding="utf-8")
  except OSError:
    return {}
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
      return {}  # of a program that was killed
    except BlockingIOError:
      pass
    except OSError:
      return {}
    for _ in range(20):
      file.seek(0)
      with contextlib.suppress(ValueError):  # it is being written
        found = json.loads(file.read())
        if isinstance(found, dict):
          return found
      time.sleep(0.01)
  return dict.fromkeys(("process", "host", "since"))


def _taken(folder: pathlib.Path, where: pathlib.Path, owner: dict[str, Any]) -> UserError:
  known = {key: owner.get(key) or "unknown" for key in ("process", "host", "since")}
  through = "" if where == folder else f", which has {_short(where)!r}"
  return UserError(
    f"workdir {_short(folder)!r} is in use by another program{through}: process {known['process']} on host "
    f"{known['host']}, since {known['since']}; wait for its end, or use another --workdir"
  )


def _short(path: pathlib.Path) -> str:
  text = str(path)
  return text if len(text) <= 200 else f"{text[:100]}...{text[-40:]}"
