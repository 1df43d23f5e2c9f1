"""TensorBoard event files: a copy of the lines of one part of a run. Only this file uses tensorboardX.

Their names hold a time and a process and no host. A file is a sequence of records, each with checksums (TFRecord), of
which every one holds the numbers of one step.
"""

import importlib
import os
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PATTERN = "events.out.tfevents.*"


def start(folder: Path, lines: Sequence[Mapping[str, Any]]) -> Any:
  """Returns the writer of a new event file, which holds some lines; those that the folder holds are removed.

  Args:
    folder: created if it is missing.
    lines: each a "step" and named numbers.
  """
  from tensorboardX.record_writer import RecordWriter

  messages = _messages()
  folder.mkdir(parents=True, exist_ok=True)
  for old in folder.glob(PATTERN):
    old.unlink()
  writer = RecordWriter(str(folder / f"events.out.tfevents.{time.time_ns() // 10**9}.{os.getpid()}"))
  writer.write(messages.Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
  # a new session hides what a TensorBoard that is open has read of the removed files
  session = messages.SessionLog(status=messages.SessionLog.START)
  writer.write(messages.Event(wall_time=time.time(), step=0, session_log=session).SerializeToString())
  for line in lines:
    add(writer, line)
  return writer


def add(writer: Any, line: Mapping[str, Any]) -> None:
  """Writes the numbers of one step."""
  event = _messages().Event(wall_time=time.time(), step=line["step"])
  for tag, value in line.items():
    if tag != "step":
      event.summary.value.add(tag=tag, simple_value=float(value))
  writer.write(event.SerializeToString())


def holds(folder: Path, lines: Sequence[Mapping[str, Any]]) -> bool:
  """Returns whether a folder has one event file, undamaged and of these lines alone."""
  found = [*folder.glob(PATTERN)] if folder.is_dir() else []
  return len(found) == 1 and _read(found[0].read_bytes()) == [
    (line["step"], {tag: struct.pack("<f", float(value)) for tag, value in line.items() if tag != "step"})
    for line in lines
  ]


def _read(data: bytes) -> list[tuple[int, dict[str, bytes]]] | None:
  """Returns (step, {tag: float32}) of each event with numbers; None of a damaged file."""
  from tensorboardX.record_writer import masked_crc32c

  found = []
  while data:
    if len(data) < 12:
      return None
    size, head = struct.unpack_from("<QI", data)
    if head != masked_crc32c(data[:8]) or len(data) < size + 16:
      return None
    record, (crc,) = data[12 : 12 + size], struct.unpack_from("<I", data, 12 + size)
    if crc != masked_crc32c(record):
      return None
    try:
      event = _messages().Event.FromString(record)
    except Exception:  # of the parser's own kinds
      return None
    if event.HasField("summary"):
      found.append((event.step, {one.tag: struct.pack("<f", one.simple_value) for one in event.summary.value}))
    data = data[16 + size :]
  return found


def _messages() -> Any:
  """Returns the module of the messages that a record may be; its classes are made when it is loaded."""
  return importlib.import_module("tensorboardX.proto.event_pb2")
