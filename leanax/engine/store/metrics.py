"""Metrics of a run, as metrics.jsonl and as TensorBoard event files.

metrics.jsonl holds one object per line, "step" first, then named numbers. A resumed run removes the lines of the steps
that it repeats, so the final file is bitwise that of an uninterrupted run. Event files are a copy of it: the tag of a
number is its name without its part of the run, which is a folder, so that TensorBoard draws the same quantity of all
parts in one chart. Only this file uses tensorboardX.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from leanax.core import files
from leanax.core.errors import UserError

NAME = "metrics.jsonl"
EVENTS = "tensorboard"  # the folder of event files


class Writer:
  """Writes the numbers of one run, or of a part of it, such as a stage.

  Write the numbers of step n before saving the checkpoint of step n: then a run that resumes from step n with `after=n`
  has every number once.

  Args:
    workdir: the directory of metrics.jsonl and tensorboard/; created if it is missing.
    after: the step to resume from; later lines are removed. None starts a new file.
    tensorboard: whether to write event files too. Those that are there are written anew from the lines that stay.
    part: the part of the run: its numbers are named `part/...` in metrics.jsonl, no others are removed, and its event
      files are in tensorboard/PART. "" for the whole run.
    first: the steps of the parts before this one. Steps are the part's own; those of metrics.jsonl are the run's.
  """

  def __init__(
    self, workdir: str | Path, *, after: int | None = None, tensorboard: bool = True, part: str = "", first: int = 0
  ):
    self.path = Path(workdir) / NAME
    self._prefix, self._first = f"{part}/" if part else "", first
    self.path.parent.mkdir(parents=True, exist_ok=True)
    cut(self.path, -1 if after is None else first + after, part)
    self._file = self.path.open("ab")
    self._events = _event_writer(self.path.parent / EVENTS / part) if tensorboard else None
    if self._events is not None:
      for line in read(self.path):
        names = {name.removeprefix(self._prefix): name for name in line if name.startswith(self._prefix)}
        self._add(line["step"] - first, {tag: line[name] for tag, name in names.items() if name != "step"})

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes named numbers of one step.

    Args:
      step: the step, from 0.
      values: Python, numpy or jax scalars by name; equal in each repetition of the run.
    """
    numbers = {name: _number(name, value) for name, value in values.items()}
    named = {f"{self._prefix}{name}": _jsonable(value) for name, value in numbers.items()}
    line = {"step": self._first + int(step), **named}
    self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
    self._file.flush()  # into the kernel: a killed process loses no line
    self._add(int(step), numbers)

  def _add(self, step: int, numbers: Mapping[str, int | float]) -> None:
    """Writes numbers of one step of the part into the event file."""
    if self._events is not None:
      for tag, value in numbers.items():
        self._events.add_scalar(tag, value, step)

  def flush(self) -> None:
    """Flushes the files to disk."""
    self._file.flush()
    os.fsync(self._file.fileno())
    if self._events is not None:
      self._events.flush()

  def close(self) -> None:
    """Flushes and closes the files."""
    if not self._file.closed:
      self.flush()
      self._file.close()
    if self._events is not None:
      self._events.close()
      self._events = None

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
    self.close()


def _event_writer(folder: Path) -> Any:
  """Returns a writer of a new event file; those that the folder holds are removed."""
  from tensorboardX import SummaryWriter

  for old in folder.glob("events.out.tfevents.*"):
    old.unlink()
  # purge_step hides what a TensorBoard that is open has read of the removed files
  return SummaryWriter(str(folder), purge_step=0, filename_suffix=f".{os.getpid()}")


def read(path: str | Path) -> list[dict[str, Any]]:
  """Reads the lines of a metrics.jsonl file, or of the one in a directory; skips an incomplete last line.

  Raises:
    UserError: there is no such file, or a line is not an object with a "step".
  """
  path = Path(path)
  path = path / NAME if path.is_dir() else path
  if not path.is_file():
    raise UserError(f"there is no file {path}; expected the numbers of a run")
  found = []
  for line, _ in _lines(path):
    found.append({name: float(value) if isinstance(value, str) else value for name, value in line.items()})
  return found


def cut(path: Path, after: int, part: str = "") -> None:
  """Removes the lines of steps beyond `after`, of one part of the run or of all, and an incomplete last line."""
  if not path.exists():
    return
  prefix = f"{part}/" if part else ""
  kept = b"".join(
    raw for line, raw in _lines(path) if line["step"] <= after or not any(name.startswith(prefix) for name in line)
  )
  if len(kept) == path.stat().st_size:
    return
  files.write(path, kept)


def move(path: Path, part: str, first: int) -> None:
  """Gives the lines of a part of the run other steps, by one number, so that its first line is of step `first`."""
  lines = _lines(path) if path.exists() else []
  own = [any(name.startswith(f"{part}/") for name in line) for line, _ in lines]
  shift = next((first - line["step"] for (line, _), is_own in zip(lines, own, strict=True) if is_own), 0)
  if shift:
    moved = [json.dumps({**line, "step": line["step"] + shift}).encode() + b"\n" for line, _ in lines]
    raws = [new if is_own else raw for new, (_, raw), is_own in zip(moved, lines, own, strict=True)]
    files.write(path, b"".join(raws))


def _lines(path: Path) -> list[tuple[dict[str, Any], bytes]]:
  """Returns each complete line, parsed and raw."""
  found = []
  for number, raw in enumerate(path.read_bytes().splitlines(keepends=True), 1):
    if not raw.endswith(b"\n"):
      break
    try:
      line = json.loads(raw)
      if not _is_line(line):
        raise ValueError(line)
    except (ValueError, RecursionError) as error:
      raise UserError(f'{path}, line {number}: expected an object like {{"step": 1, "loss": 0.5}}') from error
    found.append((line, raw))
  return found


def _is_line(line: Any) -> bool:
  """Returns whether JSON data are a step and numbers, some as `_jsonable` writes them."""
  if not isinstance(line, dict) or type(line.get("step")) is not int:
    return False
  return all(isinstance(value, int | float) or value in ("nan", "inf", "-inf") for value in line.values())


def _number(name: str, value: Any) -> int | float:
  """Converts a Python, numpy or jax scalar to a Python number."""
  array = np.asarray(value)
  if array.shape != () or not (
    array.dtype == bool or np.issubdtype(array.dtype.type, np.number) or array.dtype.itemsize <= 2
  ):
    raise ValueError(f"metric {name!r} has shape {array.shape} and dtype {array.dtype}; expected one number")
  return int(array) if array.dtype.kind in "biu" else float(array)


def _jsonable(value: int | float) -> int | float | str:
  """Converts nan and infinities, which JSON does not have, to text that `float` reads."""
  return value if math.isfinite(value) else str(value)
