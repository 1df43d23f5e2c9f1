"""Metrics of a run, as metrics.jsonl and as TensorBoard event files.

metrics.jsonl holds one object per line, "step" first, then named numbers. It is a copy: the lines of a part of the run,
such as a stage, are kept with its checkpoints and its model, which have checksums, and the file is made again of these
where it is missing or differs. So a resumed run has the lines of the steps that it repeats once, and the final file is
bitwise that of an uninterrupted run. Event files (`store.events`) are a copy of metrics.jsonl: the tag of a number is
its name without its part of the run, which is a folder, so that TensorBoard draws the same quantity of all parts in one
chart.
"""

import json
import math
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from leanax.core import files
from leanax.core.errors import UserError
from leanax.engine.store import events

NAME = "metrics.jsonl"
EVENTS = "tensorboard"  # the folder of event files
TEXTS = ("nan", "inf", "-inf")  # of numbers that JSON does not have
Lines = list[dict[str, Any]]  # of a part: its own steps, its own names, nan and infinities as `TEXTS`


class Writer:
  """Writes the numbers of one run, or of a part of it, such as a stage.

  Write the numbers of step n before saving the checkpoint of step n, and save `lines` with it (`as_text`): then a run
  that resumes from step n with these has every number once, whatever has happened to the file.

  Args:
    workdir: the directory of metrics.jsonl and tensorboard/; created if it is missing.
    after: the step to resume from; later lines are removed. None starts a new file.
    tensorboard: whether to write event files too. Those that are there are written anew from the lines that stay.
    part: the part of the run: its numbers are named `part/...` in metrics.jsonl, no others are removed, and its event
      files are in tensorboard/PART. "" for the whole run.
    first: the steps of the parts before this one. Steps are the part's own; those of metrics.jsonl are the run's.
    lines: those up to `after`, as they were saved; None takes those that the file has.

  Attributes:
    lines: what was written of the part so far, JSON data with its own steps and names.
  """

  def __init__(
    self,
    workdir: str | Path,
    *,
    after: int | None = None,
    tensorboard: bool = True,
    part: str = "",
    first: int = 0,
    lines: Lines | None = None,
  ):
    self.path = Path(workdir) / NAME
    self._part, self._first = part, first
    self.path.parent.mkdir(parents=True, exist_ok=True)
    last = -1 if after is None else after
    if lines is None:
      lines = own(self.path, part, first)
    elif _cut(own(self.path, part, start=lines[0]["step"] if lines else 0, strict=False), last) != _cut(lines, last):
      _say_changed(self.path, part)
    self.lines = _cut(lines, last)
    place(self.path, self.lines, part, first)
    self._file = self.path.open("ab")
    self._events = events.start(self.path.parent / EVENTS / part, self.lines) if tensorboard else None

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes named numbers of one step.

    Args:
      step: the step, from 0.
      values: Python, numpy or jax scalars by name; equal in each repetition of the run.
    """
    line = {"step": int(step), **{name: _jsonable(_number(name, value)) for name, value in values.items()}}
    self._file.write(_raw(line, self._part, self._first))
    self._file.flush()  # into the kernel: a killed process loses no line
    self.lines.append(line)
    if self._events is not None:
      events.add(self._events, line)

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


def as_text(lines: Lines) -> str:
  """Returns lines as one text to be kept with a checkpoint or a model; JSON data would lose the order of names."""
  return b"".join(_raw(line, "", 0) for line in lines).decode()


def from_text(text: Any, where: str | Path) -> Lines:
  """Returns the lines of `as_text`.

  Raises:
    UserError: the text is none of lines; `where` names the file that holds it.
  """
  try:
    return [line for line, _ in _parsed(text.encode(), str(where))]
  except AttributeError:
    raise UserError(f"{where} holds no lines of metrics; expected a file of this program") from None


def own(path: Path, part: str = "", first: int = 0, *, start: int | None = None, strict: bool = True) -> Lines:
  """Returns the lines that a file has of one part of the run, with its own steps and names; [] without a file.

  Args:
    path: the file.
    part: of the run; "" for all.
    first: the steps before it.
    start: the part's own step of its first line, which says what `first` was when it was written; None where it stands.
    strict: whether a line that is none is refused, or left out.
  """
  prefix = f"{part}/" if part else ""
  lines = [line for line, _ in (_lines(path, strict) if path.exists() else []) if _is_of(line, part)]
  if start is not None and lines:
    first = lines[0]["step"] - start
  return [
    {"step": line["step"] - first, **{name.removeprefix(prefix): line[name] for name in line if name != "step"}}
    for line in lines
  ]


def place(
  path: Path,
  lines: Sequence[Mapping[str, Any]],
  part: str = "",
  first: int = 0,
  parts: Collection[str] | None = None,
) -> None:
  """Gives a file these lines of one part of the run, in the order of the run's steps, in place of those that it has.

  Args:
    path: the file; without lines none is made.
    lines: with the part's own steps and names.
    part: of the run; "" for all.
    first: the steps before it.
    parts: all that the run has; lines of others go. None keeps them.
  """
  there = path.read_bytes() if path.exists() else b""
  others = [
    (line["step"], raw)
    for line, raw in (_lines(path, False) if there else [])
    if not _is_of(line, part) and (parts is None or any(_is_of(line, other) for other in parts))
  ]
  placed = others + [(first + line["step"], _raw(line, part, first)) for line in lines]
  kept = b"".join(raw for _, raw in (sorted(placed, key=lambda one: one[0]) if others else placed))
  if kept != there:
    files.write(path, kept)


def restore(
  workdir: Path, lines: Lines | None, part: str, first: int, start: int, parts: Collection[str] | None = None
) -> Lines:
  """Makes the copies of a finished part right: its lines in metrics.jsonl, and its event file.

  Args:
    workdir: their directory.
    lines: of the part, as they were saved with its model; None where they were not, and those of the file are taken.
    part: of the run.
    first: the steps of the parts before this one, by which those of the file may have changed.
    start: the part's own step of its first line.
    parts: as of `place`.

  Returns:
    The lines.

  Raises:
    UserError: they were not saved, and the file has a line that is none.
  """
  path = workdir / NAME
  there = own(path, part, start=start, strict=lines is None)
  if lines is None:
    lines = there
  elif there != lines:
    _say_changed(path, part)
  place(path, lines, part, first, parts)
  if lines and not events.holds(workdir / EVENTS / part, lines):
    events.start(workdir / EVENTS / part, lines).close()
  return lines


def _say_changed(path: Path, part: str) -> None:
  """Says on stderr that lines were lost or changed, and are made again."""
  of = f" of {part!r}" if part else ""
  print(f"warning: {path} lacks lines{of}, or has others; they are made again from what was saved", file=sys.stderr)


def _cut(lines: Lines, last: int) -> Lines:
  return [line for line in lines if line["step"] <= last]


def _is_of(line: Mapping[str, Any], part: str) -> bool:
  return not part or any(name.startswith(f"{part}/") for name in line)


def _raw(line: Mapping[str, Any], part: str, first: int) -> bytes:
  """Returns a line of a part as the file has it."""
  named = {f"{part}/{name}" if part else name: value for name, value in line.items() if name != "step"}
  return json.dumps({"step": first + line["step"], **named}, allow_nan=False).encode() + b"\n"


def _lines(path: Path, strict: bool = True) -> list[tuple[dict[str, Any], bytes]]:
  """Returns each complete line, parsed and raw; one that is none is refused, or left out where not `strict`."""
  return _parsed(path.read_bytes(), str(path), strict)


def _parsed(content: bytes, where: str, strict: bool = True) -> list[tuple[dict[str, Any], bytes]]:
  found = []
  for number, raw in enumerate(content.split(b"\n")[:-1], 1):
    try:
      line = json.loads(raw)
    except (ValueError, RecursionError):
      line = None
    if isinstance(line, dict) and _is_line(line):
      found.append((line, raw + b"\n"))
    elif strict:
      raise UserError(f'{where}, line {number}: expected an object like {{"step": 1, "loss": 0.5}}')
  return found


def _is_line(line: Mapping[str, Any]) -> bool:
  """Returns whether an object is a step and numbers, some as `_jsonable` writes them."""
  if type(line.get("step")) is not int:
    return False
  return all(isinstance(value, int | float) or value in TEXTS for value in line.values())


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
