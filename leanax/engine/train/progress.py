"""The progress of a run: a bar with the rate and the time left on a terminal, plain lines elsewhere."""

import contextlib
import io
import logging
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

# The parts of the line by their worth: a terminal that is too narrow cuts off the last ones.
BAR = "{desc}: {n_fmt}/{total_fmt} |{bar}| {remaining} left{postfix}, {rate_fmt}"


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
    self._last: tuple[int, float] | None = None  # the last step, and when it was started
    self._values: Mapping[str, Any] = {}
    self._busy = False  # with something else than steps

  def __enter__(self) -> "Progress":
    self._started = self._shown = self._clock()
    if self._stream.isatty():
      from tqdm import tqdm

      self._bar = tqdm(
        total=self._total,
        initial=self._start,
        desc=self._label or None,
        file=self._stream,
        dynamic_ncols=True,
        unit=" steps",
        bar_format=BAR,
      )
      above = _AboveBar(self._bar, self._stream)
      self._open.callback(self._bar.close)
      self._open.callback(above.finish)
      self._open.enter_context(contextlib.redirect_stderr(above))
      for handler in _handlers_on(self._stream):
        handler.setStream(above)
        self._open.callback(handler.setStream, self._stream)
    if self._start < self._total:
      self.doing("compiling")
    return self

  def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
    if self._bar is not None:
      self._ended()
      self._bar.set_postfix_str(_text(self._values), refresh=False)
    elif self._last is not None and self._last[0] >= self._total:
      self._print(self._line(*self._last))
    self._open.close()

  def doing(self, what: str) -> None:
    """Says what keeps the loop from its next step, such as "compiling", until the next update."""
    if self._bar is None:
      self._print(f"{self._head(self._last[0])}, {what}" if self._last else f"{self._before()}{what}")
      return
    self._busy = True
    self._bar.set_description_str(f"{self._label}, {what}" if self._label else what, refresh=True)

  def update(self, step: int, values: Mapping[str, Any] | None = None) -> None:
    """Says that `step` is done; `values` are shown from now on.

    Cheap: nothing is converted (and no device waited for) unless something is shown now.
    """
    self._values = values or self._values
    if self._bar is not None:
      self._ended()
      if self._bar.update(step - self._bar.n):
        self._bar.set_postfix_str(_text(self._values), refresh=False)
      return
    if self._last is not None and step == self._last[0]:  # its numbers alone are new
      return
    now = self._clock()
    if self._first is None:  # the first update comes after compiling, which says nothing of the rate
      self._first = self._shown = now
      self._start = step
      self._print(f"{self._head(step)}, the first after {now - self._started:.1f} s")
    self._last = step, now
    if now - self._shown >= self._every and step < self._total:
      self._shown = now
      self._print(self._line(step, now))

  def _ended(self) -> None:
    """Goes on with steps; the time since the last one says nothing of the rate."""
    if self._busy:
      self._busy = False
      self._bar.unpause()
      self._bar.set_description_str(self._label, refresh=False)

  def _print(self, line: str) -> None:
    print(line, file=self._stream, flush=True)

  def _line(self, step: int, now: float) -> str:
    assert self._first is not None
    parts = [self._head(step)]
    if step > self._start:
      rate = (step - self._start) / max(now - self._first, 1e-9)
      parts += [f"{rate:.3g} steps/s", f"{clock_text((self._total - step) / rate)} left"]
    return ", ".join([*parts, *([_text(self._values)] if self._values else [])])

  def _before(self) -> str:
    return f"{self._label}: " if self._label else ""

  def _head(self, step: int) -> str:
    return f"{self._before()}step {step}/{self._total}"


def clock_text(seconds: float) -> str:
  """Returns seconds as people read them: 0:07, 12:30, 1:02:03."""
  minutes, second = divmod(round(seconds), 60)
  hours, minute = divmod(minutes, 60)
  return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _text(values: Mapping[str, Any]) -> str:
  return ", ".join(f"{name} {float(value):.3g}" for name, value in values.items())


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
