"""Numbers of a run: metrics.jsonl for programs, TensorBoard event files for eyes.

metrics.jsonl holds one object a line, "step" first, then named numbers. A resumed run cuts the lines of steps that it
will do again, so that in the end the file is that of an unbroken run, byte for byte. Numbers that differ from run to
run, such as rates, therefore go to TensorBoard alone. This is the only file that knows tensorboardX.
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


class Writer:
  """Writes the numbers of one run.

  A loop writes the numbers of step n before it saves the checkpoint of step n: then a run that resumes from step n with
  `after=n` misses none and repeats none.

  Args:
    workdir: where metrics.jsonl and the folder tensorboard/ stand; created if it is missing.
    after: the step that is resumed from; later lines are cut. None starts anew.
    tensorboard: whether to write event files too.
    part: the part of the run that is resumed, such as a stage: only lines with a number named `part/...` are cut, and
      its event files have a folder of their own. "" for the whole run.
  """

  def __init__(self, workdir: str | Path, *, after: int | None = None, tensorboard: bool = True, part: str = ""):
    self.path = Path(workdir) / NAME
    self.path.parent.mkdir(parents=True, exist_ok=True)
    cut(self.path, -1 if after is None else after, part)
    self._file = self.path.open("ab")
    self._events: Any = None
    if tensorboard:
      from tensorboardX import SummaryWriter

      # purge_step hides what an earlier process wrote for the steps that will be done again
      purge = 0 if after is None else after + 1
      suffix = f".{os.getpid()}.{purge}"  # else two writers of the same second would share a file name
      folder = self.path.parent / "tensorboard" / part
      self._events = SummaryWriter(str(folder), purge_step=purge, filename_suffix=suffix)

  def write(self, step: int, values: Mapping[str, Any], *, volatile: Mapping[str, Any] | None = None) -> None:
    """Writes named numbers of one step.

    Args:
      step: the step, from 0.
      values: Python, numpy or jax scalars by name; the same in each repetition of the run.
      volatile: numbers that are not (rates, times): for TensorBoard only.
    """
    numbers = {name: _number(name, value) for name, value in values.items()}
    line = {"step": int(step), **{name: _jsonable(value) for name, value in numbers.items()}}
    self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
    self._file.flush()  # into the kernel: a killed process loses no line
    if self._events is not None:
      for name, value in {**numbers, **{n: _number(n, v) for n, v in (volatile or {}).items()}}.items():
        self._events.add_scalar(name, value, int(step))

  def flush(self) -> None:
    """Puts all that was written on disk."""
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
  """The lines of a metrics.jsonl (or of the one in a directory), numbers as numbers.

  Raises:
    UserError: there is no such file, or a line is not what a Writer writes; the unfinished last line of a run that was
      killed is left out.
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
  """Drops the lines of steps beyond `after`, those of one part of the run or all, and an unfinished last line."""
  if not path.exists():
    return
  prefix = f"{part}/" if part else ""
  kept = b"".join(
    raw for line, raw in _lines(path) if line["step"] <= after or not any(name.startswith(prefix) for name in line)
  )
  if len(kept) == path.stat().st_size:
    return
  files.write(path, kept)


def _lines(path: Path) -> list[tuple[dict[str, Any], bytes]]:
  """Each whole line, parsed and as it stands."""
  found = []
  for number, raw in enumerate(path.read_bytes().splitlines(keepends=True), 1):
    if not raw.endswith(b"\n"):
      break
    try:
      line = json.loads(raw)
      int(line["step"])
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(f'{path}, line {number}: expected an object like {{"step": 1, "loss": 0.5}}') from error
    found.append((line, raw))
  return found


def _number(name: str, value: Any) -> int | float:
  """A Python number from a scalar of any kind."""
  array = np.asarray(value)
  if array.shape != () or not (
    array.dtype == bool or np.issubdtype(array.dtype.type, np.number) or array.dtype.itemsize <= 2
  ):
    raise ValueError(f"metric {name!r} has shape {array.shape} and dtype {array.dtype}; expected one number")
  return int(array) if array.dtype.kind in "biu" else float(array)


def _jsonable(value: int | float) -> int | float | str:
  """JSON has no nan and no infinities: they are written as text that `float` reads."""
  return value if math.isfinite(value) else str(value)
