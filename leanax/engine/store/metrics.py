"""Metrics of a run, as metrics.jsonl and as TensorBoard event files.

metrics.jsonl holds one object per line, "step" first, then named numbers. A resumed run removes the lines of the steps
that it repeats, so the final file is bitwise that of an uninterrupted run. Numbers that differ from run to run, such as
rates, therefore go to TensorBoard only. Only this file uses tensorboardX.
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

  Write the numbers of step n before saving the checkpoint of step n: then a run that resumes from step n with `after=n`
  has every number once.

  Args:
    workdir: the directory of metrics.jsonl and tensorboard/; created if it is missing.
    after: the step to resume from; later lines are removed. None starts a new file.
    tensorboard: whether to write event files too.
    part: the part of the run that is resumed, such as a stage: only lines with a number named `part/...` are removed,
      and its event files have their own folder. "" for the whole run.
  """

  def __init__(self, workdir: str | Path, *, after: int | None = None, tensorboard: bool = True, part: str = ""):
    self.path = Path(workdir) / NAME
    self.path.parent.mkdir(parents=True, exist_ok=True)
    cut(self.path, -1 if after is None else after, part)
    self._file = self.path.open("ab")
    self._events: Any = None
    if tensorboard:
      from tensorboardX import SummaryWriter

      # purge_step hides the numbers of an earlier process for the steps that are repeated
      purge = 0 if after is None else after + 1
      suffix = f".{os.getpid()}.{purge}"  # else two writers of the same second would share a file name
      folder = self.path.parent / "tensorboard" / part
      self._events = SummaryWriter(str(folder), purge_step=purge, filename_suffix=suffix)

  def write(self, step: int, values: Mapping[str, Any], *, volatile: Mapping[str, Any] | None = None) -> None:
    """Writes named numbers of one step.

    Args:
      step: the step, from 0.
      values: Python, numpy or jax scalars by name; equal in each repetition of the run.
      volatile: numbers that differ (rates, times), for TensorBoard only.
    """
    numbers = {name: _number(name, value) for name, value in values.items()}
    line = {"step": int(step), **{name: _jsonable(value) for name, value in numbers.items()}}
    self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
    self._file.flush()  # into the kernel: a killed process loses no line
    if self._events is not None:
      for name, value in {**numbers, **{n: _number(n, v) for n, v in (volatile or {}).items()}}.items():
        self._events.add_scalar(name, value, int(step))

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


def _lines(path: Path) -> list[tuple[dict[str, Any], bytes]]:
  """Returns each complete line, parsed and raw."""
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
