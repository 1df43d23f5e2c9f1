"""A limit of time for what a file from elsewhere makes this program do.

This file imports the standard library only.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
  """Raises TimeoutError inside of the block after so many seconds.

  It does so between two steps of Python code, in a program's main thread and where the system has timers; elsewhere
  there is no limit. A timer that was set before goes on behind the block.
  """
  if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
    yield
    return

  def late(*_: Any) -> None:
    raise TimeoutError(f"it takes more than {seconds:g} s")

  start, handler = time.monotonic(), signal.signal(signal.SIGALRM, late)
  before, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, handler)
    if before:
      signal.setitimer(signal.ITIMER_REAL, max(before - (time.monotonic() - start), 1e-3), interval)
