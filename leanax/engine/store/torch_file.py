"""Arrays of the files that torch.save writes, read without torch and without running what they hold.

Two forms: an archive of a pickle and the bytes of each storage (since torch 1.6), and a stream of both (before it). The
pickle is read by `torch_pickle`, which calls nothing. Arrays are views of the file's bytes, so that a file cannot ask
for more memory than it has bytes, whatever sizes and strides it declares.
"""

import io
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from leanax.engine.store import torch_pickle
from leanax.engine.store.torch_arrays import Arrays, Storage, Unread, storage
from leanax.engine.store.torch_pickle import Damaged

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # at the start of a stream


class Contents(NamedTuple):
  """A file's pickled value, the bytes of a storage, and whether their order is the reverse of this machine's."""

  root: Any
  stored: Callable[[Storage], memoryview]
  swapped: bool = False


def read(content: bytes) -> dict[str, np.ndarray | Unread]:
  """Returns all tensors of a file by name, and numpy's arrays and numbers.

  Keys of dicts and attributes of objects are joined by "/": a state dict alone has names such as "fc.weight", and one
  of a checkpoint "model/fc.weight". A module's parameters and buffers have the names that its state dict gives them.

  Raises:
    Damaged: it is no such file, or it is damaged; the text is a part of a sentence.
  """
  if content[:4] == b"PK\x03\x04":
    found = _archive(content)
  elif content[257:262] == b"ustar":
    raise Damaged("it is a tar archive, of a torch before 0.2; expected it loaded and saved again with a newer one")
  else:
    found = _stream(content)
  return Arrays(*found, size=len(content)).named()


def _archive(content: bytes) -> Contents:
  """Reads the archive of a pickle and storages."""
  try:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
      entries = {entry.filename: entry for entry in file.infolist()}
  except Exception as error:  # a damaged archive may raise anything
    raise Damaged("its archive is damaged") from error
  found = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
  if len(found) != 1:
    raise Damaged("it is an archive without one data.pkl; expected a file of torch.save")
  folder = found[0].removesuffix("data.pkl")
  if f"{folder}constants.pkl" in entries:
    raise Damaged("it is a TorchScript program; expected torch.save(model.state_dict(), path)")

  def part(name: str) -> memoryview:
    if name not in entries:
      raise Damaged(f"{name!r} is missing in its archive")
    return _part(content, entries[name])

  order = bytes(part(f"{folder}byteorder")) if f"{folder}byteorder" in entries else b"little"
  if order not in (b"little", b"big"):
    raise Damaged(f"its byte order is {order[:20]!r}; expected little or big")
  root = torch_pickle.load(io.BytesIO(part(found[0])), storage)
  return Contents(root, lambda one: part(f"{folder}data/{one.key}"), order == b"big")


def _part(content: bytes, entry: zipfile.ZipInfo) -> memoryview:
  """Returns the bytes of an entry of an archive, which torch never compresses."""
  at, view = entry.header_offset, memoryview(content)
  head = view[at : at + 30] if at >= 0 else view[:0]
  if len(head) < 30 or head[:4] != b"PK\x03\x04":
    raise Damaged("its archive is damaged")
  start = at + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
  if entry.compress_type != zipfile.ZIP_STORED:
    raise Damaged(f"{entry.filename!r} is compressed in its archive; expected a file as torch.save writes it")
  if start + entry.file_size > len(content):
    raise Damaged(f"{entry.filename!r} ends behind the file; is it cut off?")
  found = view[start : start + entry.file_size]
  if zlib.crc32(found) != entry.CRC:
    raise Damaged(f"{entry.filename!r} does not match its checksum, which torch.save writes unless it is told not to")
  return found


def _stream(content: bytes) -> Contents:
  """Reads the stream of pickles, and of storages behind them: each its number of entries, then these."""
  file, seen = io.BytesIO(content), {}

  def persistent(given: Any) -> Any:
    found = storage(given)
    if isinstance(found, Storage):
      seen[found.key] = found.dtype
    return found

  def nothing(given: Any) -> Any:
    raise Damaged("it names a storage before its contents")

  foreign = "it is no file that torch.save wrote"
  try:
    start = [torch_pickle.load(file, nothing) for _ in range(2)] if content[:1] == b"\x80" else []
    if start != [MAGIC, PROTOCOL]:
      raise Damaged(foreign)
  except Damaged as error:
    raise Damaged(foreign) from error
  system = torch_pickle.load(file, nothing)
  if not isinstance(system, dict) or system.get("little_endian", True) is not True:
    raise Damaged("it was written on a machine of another byte order; expected little-endian")
  root = torch_pickle.load(file, persistent)
  keys = torch_pickle.load(file, nothing)
  if not isinstance(keys, list):
    raise Damaged("it lists no storages")
  places: dict[str, memoryview] = {}
  view, at = memoryview(content), file.tell()
  for key in keys:
    if not isinstance(key, str) or key not in seen:
      raise Damaged("it lists a storage that nothing reads")
    size = int.from_bytes(view[at : at + 8], "little") * jnp.dtype(seen[key]).itemsize
    if at + 8 + size > len(content):
      raise Damaged(f"storage {key!r} ends behind the file; is it cut off?")
    places[key] = view[at + 8 : at + 8 + size]
    at += 8 + size

  def stored(one: Storage) -> memoryview:
    if one.key not in places:
      raise Damaged(f"storage {one.key!r} is missing")
    return places[one.key]

  return Contents(root, stored)
