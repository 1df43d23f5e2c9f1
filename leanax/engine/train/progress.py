"""The progress of a run: a bar with the rate and the time left on a terminal, plain lines elsewhere."""

import contextlib
import io
import logging
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO


class Progress:
  """Shows the progress of a loop, as a context manager.

  On a terminal, whatever else is written to sys.stderr while the bar stands (absl's log lines, warnings) is written
  above the bar, so neither tears the other.

  Args:
    total: the last step.
    start: the step to start from; a resumed run's rate counts its own steps only.
    label: what is shown in front.
    every: seconds between plain lines.
    stream: where to write; sys.stderr if None.
    clock: seconds, for tests.
  """

  def __init__(
    self,
    total: int,
    *,
    start: int = 0,
    label: str = "",
    every: float = 10.0,
    stream: TextIO | io.TextIOBase | None = None,
    clock: Any = time.monotonic,
  ):
    self._total, self._start, self._label, self._every, self._clock = total, start, label, every, clock
    self._stream: Any = sys.stderr if stream is None else stream
    self._bar: Any = None
    self._open = contextlib.ExitStack()
    self._started = self._shown = clock()
    self._first: float | None = None

  def __enter__(self) -> "Progress":
    self._started = self._shown = self._clock()
    if self._stream.isatty():
      from tqdm import tqdm

      self._bar = tqdm(
        total=self._total, initial=self._start, desc=self._label or None, file=self._stream, dynamic_ncols=True
      )
      above = _AboveBar(self._bar, self._stream)
      self._open.callback(self._bar.close)
      self._open.callback(above.finish)
      self._open.enter_context(contextlib.redirect_stderr(above))
      for handler in _handlers_on(self._stream):
        handler.setStream(above)
        self._open.callback(handler.setStream, self._stream)
    return self

  def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
    self._open.close()

  def update(self, step: int, values: Mapping[str, Any] | None = None) -> None:
    """Says that `step` is done; `values` are shown with it.

    Cheap: nothing is converted (and no device waited for) unless something is shown now.
    """
    if self._bar is not None:
      if self._bar.update(step - self._bar.n) and values:
        self._bar.set_postfix_str(_text(values), refresh=False)
      return
    now = self._clock()
    if self._first is None:  # the first update comes after compiling, which says nothing of the rate
      self._first = self._shown = now
      self._start = step
      print(f"{self._head(step)}, the first after {now - self._started:.1f} s", file=self._stream, flush=True)
    elif now - self._shown >= self._every or step >= self._total:
      self._shown = now
      print(self._line(step, now, values or {}), file=self._stream, flush=True)

  def _line(self, step: int, now: float, values: Mapping[str, Any]) -> str:
    assert self._first is not None
    rate = (step - self._start) / max(now - self._first, 1e-9)
    left = clock_text((self._total - step) / rate) if rate > 0 else "?"
    numbers = f", {_text(values)}" if values else ""
    return f"{self._head(step)}, {rate:.3g} steps/s, {left} left{numbers}"

  def _head(self, step: int) -> str:
    label = f"{self._label}: " if self._label else ""
    return f"{label}step {step}/{self._total}"


def clock_text(seconds: float) -> str:
  """Returns seconds as people read them: 0:07, 12:30, 1:02:03."""
  minutes, second = divmod(round(seconds), 60)
  hours, minute = divmod(minutes, 60)
  return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _text(values: Mapping[str, Any]) -> str:
  return ", ".join(f"{name} {float(value):.4g}" for name, value in values.items())


def _handlers_on(stream: Any) -> list[logging.StreamHandler]:
  """Returns the log handlers that write to `stream` itself; they hold it since they were made.

  absl's handler passes its records on to one that it calls `python_handler`.
  """
  handlers = [getattr(handler, "python_handler", handler) for handler in logging.getLogger().handlers]
  return [h for h in handlers if isinstance(h, logging.StreamHandler) and h.stream is stream]


class _AboveBar(io.TextIOBase):
  """Takes sys.stderr's place while a bar stands: whole lines are written above the bar."""

  def __init__(self, bar: Any, stream: Any):
    self._bar, self._stream, self._rest = bar, stream, ""

  def write(self, text: str) -> int:
    *lines, self._rest = (self._rest + text).split("\n")
    if lines:
      with self._bar.get_lock():
        self._bar.clear(nolock=True)
        self._stream.write("".join(line + "\n" for line in lines))
        self._bar.refresh(nolock=True)
    return len(text)

  def finish(self) -> None:
    """Writes a line that has no end yet."""
    if self._rest:
      self.write("\n")

  def isatty(self) -> bool:
    return True

  def fileno(self) -> int:
    return self._stream.fileno()
