"""Files that are written wholly or not at all, and the first difference of two trees of plain values.

This file imports the standard library only.
"""

import contextlib
import errno
import functools
import json
import os
import pathlib
import re
import secrets
import zlib
from collections.abc import Mapping
from typing import IO, Any

from leanax.core.errors import UserError

CHECKSUM = "crc32"  # the key of a JSON object's checksum


def write(path: str | os.PathLike[str], content: str | bytes | memoryview, *, secret: bool = False) -> None:
  """Writes a file, wholly or not at all: a reader sees the old file or the whole new one, after a power cut too.

  Several programs may write one file at once; the last one's stays. What programs that were killed in here have left in
  the directory is removed before this process's first file in it.

  Args:
    path: the file; one that exists is replaced.
    content: its bytes, or a text, written as UTF-8.
    secret: whether no other user may read it; one that exists, or that another program makes meanwhile, stays.

  Raises:
    UserError: it cannot be written; nothing is left beside it.
  """
  path = pathlib.Path(path)
  part = path.with_name(f".{secrets.token_hex(8)}.part")  # not of the file's own name, which may be as long as allowed
  _tidied(os.path.abspath(path.parent))
  try:
    with _opened(part, 0o600 if secret else 0o666) as file:  # and locked until it has its name
      file.write(content.encode() if isinstance(content, str) else content)
      file.flush()
      os.fsync(file.fileno())
      if secret:
        with contextlib.suppress(FileExistsError):
          os.link(part, path)  # atomic
      else:
        part.replace(path)
  except OSError as error:
    raise UserError(f"{str(path)!r} cannot be written: {error.strerror}") from error
  finally:
    with contextlib.suppress(OSError):  # it has its place already, or there is no such directory
      part.unlink()
  sync_folder(path.parent)


def _opened(part: pathlib.Path, mode: int) -> IO[bytes]:
  """Opens a new file with a lock, by which other programs know that its writer lives; a system may have no locks."""
  import fcntl

  while True:
    file = os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")
    with contextlib.suppress(OSError):
      fcntl.flock(file, fcntl.LOCK_EX)
    if part.exists():
      return file
    file.close()  # another program has removed it before it was locked


@functools.cache
def _tidied(folder: str) -> None:
  remove_parts(folder, below=0)


def sync_folder(folder: str | os.PathLike[str]) -> None:
  """Brings the names in a directory to the disk, where the system can; those of files and directories below are not."""
  with contextlib.suppress(OSError):  # systems without open directories, and file systems that cannot
    opened = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(opened)
    finally:
      os.close(opened)


def sync_tree(folder: str | os.PathLike[str]) -> None:
  """Brings all files and names below a directory to the disk.

  Raises:
    OSError: a file cannot be written to the disk.
  """
  for place, _, names in os.walk(folder):
    for name in names:
      opened = os.open(os.path.join(place, name), os.O_RDONLY)
      try:
        os.fsync(opened)
      finally:
        os.close(opened)
    sync_folder(place)


def remove_parts(folder: str | os.PathLike[str], below: int = 2) -> None:
  """Removes what programs that were killed in `write` have left; files that a living program writes stay.

  Args:
    folder: a directory of ours.
    below: the levels of directories in it that are looked through.
  """
  import fcntl

  for level in range(below + 1):
    for part in pathlib.Path(folder).glob("*/" * level + ".*.part"):
      if re.fullmatch(r"\.[0-9a-f]{16}\.part", part.name):
        with contextlib.suppress(OSError), part.open("r+b") as file:
          fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which its writer holds
          part.unlink()


def check_place(path: str | os.PathLike[str]) -> None:
  """Refuses a file that `write` could not write, before what it is to hold is made.

  Raises:
    UserError: there is no such directory, or nothing can be written there.
  """
  path = pathlib.Path(path)
  part = path.with_name(f".{secrets.token_hex(8)}.part")
  try:
    if path.is_dir():
      raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    part.touch(exist_ok=False)
    part.unlink(missing_ok=True)
  except OSError as error:
    raise UserError(f"{str(path)!r} cannot be written: {error.strerror}") from error


def keep(path: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
  """Writes a JSON object for later runs, with a checksum of itself, so that `kept` finds whatever changes in it."""
  write(path, kept_text(values))


def kept_text(values: Mapping[str, Any]) -> str:
  """Returns what `keep` writes."""
  return json.dumps({**values, CHECKSUM: _checksum(values)}, indent=1) + "\n"


def checksum(path: str | os.PathLike[str]) -> int | None:
  """Returns the CRC-32 of a file's bytes; None where there is no such file."""
  found = 0
  try:
    with open(path, "rb") as file:
      while block := file.read(1 << 20):
        found = zlib.crc32(block, found)
  except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
    return None
  return found


def kept(path: str | os.PathLike[str], cure: str = "remove it, and the next run makes it again") -> dict[str, Any]:
  """Returns the JSON object that `keep` wrote; {} where there is none. One from before there were checksums is taken.

  Args:
    path: the file.
    cure: how the sentence of a damaged file ends.

  Raises:
    UserError: it holds something else, or what it holds was changed.
  """
  path = pathlib.Path(path)
  try:
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
  except OSError as error:
    raise UserError(f"{str(path)!r} cannot be read: {error.strerror}") from error
  except (ValueError, RecursionError):
    found = None
  if not isinstance(found, dict):
    raise UserError(f"{str(path)!r} is damaged: it holds no JSON object; {cure}")
  checksum = found.pop(CHECKSUM, None)
  if checksum is not None and checksum != _checksum(found):
    raise UserError(f"{str(path)!r} is damaged: it does not match its checksum; {cure}")
  return found


def _checksum(values: Mapping[str, Any]) -> int:
  return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def difference(there: Any, here: Any, path: str = "") -> str:
  """Returns the first key whose value differs, in words, with both values; empty where none does.

  Args:
    there: a tree of dicts, as it was saved.
    here: the same, as it is now.
    path: of the key that holds both, joined by dots.
  """
  if isinstance(there, Mapping) and isinstance(here, Mapping):
    for key in [*there, *(key for key in here if key not in there)]:
      where = f"{path}.{key}" if path else str(key)
      if key not in there or key not in here:
        return f"{where!r} is set {'here' if key in here else 'there'} only"
      if found := difference(there[key], here[key], where):
        return found
    return ""
  return "" if there == here else f"{path!r} was {there!r} and is {here!r} here"
