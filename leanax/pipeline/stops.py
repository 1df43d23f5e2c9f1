"""Signals that ask a program to stop: SIGTERM, SIGHUP and Ctrl-C.

The first one ends the program with a sentence and the exit status 128 + its number: at once outside of training, and in
`held`, where a stage trains, after the step that is running and its checkpoint (`pipeline.saving`). A second one ends
the program in any case, and so does a thread of its own where the main one is too long in a library to hear of it.

Programs call `install` (`config.flags.run`). Without it nothing here has an effect, and no handler is changed.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Generator
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name))
SECONDS = 8.0  # from the signal to the end of the program, but for the time that its checkpoint takes
STDERR = 2
GOES_ON = "the same command goes on"


class Stopped(BaseException):
  """A signal has asked the program to stop; no error, so that code which survives errors does not survive it.

  Attributes:
    number: of the signal.
    sentence: where the program stopped.
  """

  def __init__(self, number: int, sentence: str = ""):
    self.number = number
    self.sentence = sentence or f"stopped by {signal.Signals(number).name}; {GOES_ON} with what was finished"
    super().__init__(self.sentence)


class _State:
  """The signal that was asked for, as the handler, the watching thread and the training share it."""

  def __init__(self) -> None:
    self.number = 0  # of the first signal
    self.held = False  # the main thread asks for it, and is not interrupted
    self.end = 0.0  # when the program is ended, in seconds of the monotonic clock


_STATE = _State()


def install() -> None:
  """Installs the handlers of a program; those that it was started without, as by `nohup`, stay ignored."""
  if threading.current_thread() is not threading.main_thread():
    return
  read, write = os.pipe()
  os.set_blocking(write, False)
  signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  threading.Thread(target=_watch, args=(read,), name="stops", daemon=True).start()
  for number in SIGNALS:
    if signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, _note)


def asked() -> int:
  """Returns the number of the signal that has asked the program to stop; 0 where none has."""
  return _STATE.number


@contextlib.contextmanager
def held() -> Generator[None]:
  """Lets a signal interrupt nothing inside: `asked` tells of it."""
  before, _STATE.held = _STATE.held, True
  try:
    yield
  finally:
    _STATE.held = before


@contextlib.contextmanager
def finishing() -> Generator[None]:
  """Gives what a program saves when it stops the time that it takes; a second signal ends it all the same."""
  _STATE.end = float("inf")
  try:
    yield
  finally:
    _STATE.end = time.monotonic() + SECONDS / 4


def finish() -> None:
  """Lets signals interrupt nothing from now on, for the program ends by itself."""
  _STATE.held = True


def _note(number: int, _: FrameType | None) -> Any:
  """Notes a signal; raises where nothing holds it. The main thread runs this between two operations of Python's."""
  first, _STATE.number = _STATE.number == 0, _STATE.number or number
  if first and not _STATE.held:
    raise Stopped(number)


def _watch(read: int) -> None:
  """Ends the program at a second signal, or where it takes too long to end after the first one."""
  first = _next(read)
  _STATE.end = max(_STATE.end, time.monotonic() + SECONDS)
  while time.monotonic() < _STATE.end and not select.select([read], [], [], 0.1)[0]:
    pass
  with contextlib.suppress(OSError):
    os.write(STDERR, f"\n{Stopped(first).sentence}\n".encode())  # sys.stderr may be in use by the main thread
  os._exit(128 + first)


def _next(read: int) -> int:
  """Waits for one of the signals, and returns its number."""
  while (number := os.read(read, 1)[0]) not in SIGNALS:
    pass
  return number
