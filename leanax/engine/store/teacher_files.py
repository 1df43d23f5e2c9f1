"""The files of a cache of teacher logits: arrays that grow by chunks with checksums, and a record of the chunks.

A chunk is finished when its bytes are on disk and its checksums in chunks.json; bytes that a killed program wrote after
the last finished chunk are overwritten.
"""

import contextlib
import fcntl
import io
import json
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from leanax.core import files
from leanax.core.errors import UserError
from leanax.engine.store import logit_codes, teacher_key
from leanax.engine.store.logit_codes import Field
from leanax.engine.store.teacher_key import Key

KEY, CHUNKS = "key.json", "chunks.json"
PARTNER, WEIGHT = "mix_partner", "mix_weight"

Stream = TextIO | io.TextIOBase


class Record(NamedTuple):
  """chunks.json: rows per chunk, and by array the CRC-32 of each finished chunk."""

  rows: int
  crc32: dict[str, list[int]]

  @property
  def done(self) -> int:
    return min(map(len, self.crc32.values()))


def arrays_of(key: Key) -> dict[str, Field]:
  """Returns the arrays of a cache by name: those of its form, and mixup's."""
  mix = {PARTNER: Field((), "<i4"), WEIGHT: Field((), "<f4")} if key.mixed else {}
  return {**logit_codes.fields(key.classes, key.form, key.top_k), **mix}


def chunks_of(record: Record, key: Key) -> int:
  """Returns the number of chunks of a finished cache."""
  return -(-key.examples // record.rows)


def is_whole(record: Record | None, key: Key) -> bool:
  """Returns whether all chunks are finished."""
  return record is not None and record.done == chunks_of(record, key)


def _shape(key: Key, field: Field) -> tuple[int, ...]:
  return (key.examples, *((key.views,) if key.augment else ()), *field.shape)


def _bytes(key: Key, field: Field, rows: int) -> int:
  return rows * int(np.prod(_shape(key, field)[1:])) * np.dtype(field.dtype).itemsize


def _header(key: Key, field: Field) -> bytes:
  """Returns the .npy header of the finished array."""
  buffer = io.BytesIO()
  header = {"descr": field.dtype, "fortran_order": False, "shape": _shape(key, field)}
  np.lib.format.write_array_header_1_0(buffer, header)
  return buffer.getvalue()


def load(path: Path, key: Key) -> Record | None:
  """Reads the record of the finished chunks; None if there is no cache.

  Raises:
    UserError: the cache has another key, or is damaged.
  """
  if not (path / KEY).exists():
    return None
  teacher_key.compare(_json(path, KEY), key, str(path))
  chunks = _json(path, CHUNKS)
  try:
    record = Record(int(chunks["rows"]), {name: list(map(int, chunks["crc32"][name])) for name in arrays_of(key)})
  except (KeyError, TypeError, ValueError) as error:
    raise _damaged(path, CHUNKS, "an entry is missing or wrong") from error
  if record.rows < 1 or record.done > chunks_of(record, key):
    raise _damaged(path, CHUNKS, "its chunks are not those of the examples")
  return record


def _json(path: Path, name: str) -> dict[str, Any]:
  try:
    data = json.loads((path / name).read_text())
  except (OSError, ValueError) as error:
    raise _damaged(path, name, "it is not the JSON that was written") from error
  if not isinstance(data, dict):
    raise _damaged(path, name, "it is not the JSON that was written")
  return data


def _damaged(path: Path, name: str, why: str) -> UserError:
  return UserError(f"{path / name} is damaged: {why}; delete {path} and the cache is built again")


def check(path: Path, key: Key, record: Record) -> None:
  """Compares the finished chunks with their checksums.

  Raises:
    UserError: a file is damaged.
  """
  for name, field in arrays_of(key).items():
    file, head = f"{name}.npy", _header(key, field)
    try:
      with (path / file).open("rb") as opened:
        if opened.read(len(head)) != head:
          raise _damaged(path, file, "it does not begin with its array's shape")
        for index, wanted in enumerate(record.crc32[name][: record.done]):
          size = _bytes(key, field, min(record.rows, key.examples - index * record.rows))
          data = opened.read(size)
          if len(data) != size:
            raise _damaged(path, file, "it ends too early")
          if zlib.crc32(data) != wanted:
            raise _damaged(path, file, f"chunk {index} does not match its checksum")
        if is_whole(record, key) and opened.read(1):
          raise _damaged(path, file, "it is longer than it should be")
    except OSError as error:
      raise _damaged(path, file, f"it cannot be read ({error.strerror})") from error


def mapped(path: Path, key: Key) -> dict[str, np.ndarray]:
  """Returns the memory-mapped arrays of a finished cache."""
  arrays = {}
  for name, field in arrays_of(key).items():
    offset, shape = len(_header(key, field)), _shape(key, field)
    arrays[name] = np.memmap(path / f"{name}.npy", field.dtype, "r", offset, shape).view(np.ndarray)
  return arrays


def start(path: Path, key: Key, rows: int) -> Record:
  """Creates a cache without chunks; key.json is written last and marks it as created."""
  record = Record(rows, {name: [] for name in arrays_of(key)})
  for name, field in arrays_of(key).items():
    files.write(path / f"{name}.npy", _header(key, field))
  _write_json(path / CHUNKS, record._asdict())
  _write_json(path / KEY, teacher_key.plain(key))
  return record


def append(path: Path, key: Key, record: Record, arrays: Mapping[str, np.ndarray]) -> Record:
  """Appends the next chunk.

  Args:
    path: the cache's folder.
    key: of the cache.
    record: of the finished chunks.
    arrays: (rows, views, ...) by name.

  Raises:
    UserError: a file cannot be written.
  """
  crc32 = {}
  for name, field in arrays_of(key).items():
    data = arrays[name].astype(field.dtype).tobytes()
    _put(path / f"{name}.npy", len(_header(key, field)) + _bytes(key, field, record.done * record.rows), data)
    crc32[name] = [*record.crc32[name][: record.done], zlib.crc32(data)]
  record = record._replace(crc32=crc32)
  _write_json(path / CHUNKS, record._asdict())
  return record


def _put(file: Path, place: int, data: bytes) -> None:
  """Truncates a file at `place`, appends the data, and waits for the disk."""
  try:
    with file.open("r+b") as opened:
      opened.truncate(place)
      opened.seek(place)
      opened.write(data)
      opened.flush()
      os.fsync(opened.fileno())
  except OSError as error:
    raise UserError(f"{file} cannot be written: {error.strerror}") from error


def _write_json(file: Path, data: Any) -> None:
  files.write(file, (json.dumps(data, indent=1) + "\n").encode())


@contextlib.contextmanager
def lock(path: Path, stream: Stream | None) -> Iterator[None]:
  """Holds the folder's lock until the process ends; waits while another process builds here."""
  try:
    path.mkdir(parents=True, exist_ok=True)
    file = (path / "lock").open("w")
  except OSError as error:
    raise UserError(f"the cache at {path} cannot be written: {error.strerror}") from error
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      print(f"teacher cache: another program builds {path}; waiting for it", file=stream or sys.stderr, flush=True)
      fcntl.flock(file, fcntl.LOCK_EX)
    yield
