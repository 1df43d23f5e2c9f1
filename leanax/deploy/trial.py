"""A first run of a file in another process, which a damaged file may end in place of this one.

A runtime is written for files that a converter has made. What a damaged or hostile one declares may end the process
(a division by 0, an index outside of memory), keep it busy for ever, or be allocated whatever its size. So a file that
this process has not written is opened and run in a child process first, under a limit of time and of addresses: what
happens to the child is a sentence, and a file that it outlives is opened here. The verdict is kept by the digest of
the file's bytes. The child serves one file after the other until one ends it.

This is a proof against damage and no sandbox: the child has this user's rights.
"""

import atexit
import contextlib
import hashlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from leanax.core.errors import UserError
from leanax.deploy.formats.base import refusal

SECONDS: float = 120  # of one file, and as many again for each GiB of it
ADDRESSES = 2**34  # bytes that the child may map, and 8 more for each byte of the file
CHILD = Path(__file__).with_name("trial_child.py")
WORDS = {"litert": "the LiteRT runtime", "onnx": "onnxruntime", "stablehlo": "XLA"}

_passed: set[bytes] = set()
_lock = threading.Lock()
_children: dict[int, "subprocess.Popen[bytes]"] = {}  # by process: a fork does not share its parent's


def note(content: bytes) -> bytes:
  """Returns the bytes of a file that need no first run, such as those that were written here."""
  _passed.add(_digest(content, {}))
  return content


def check(runtime: str, content: bytes, name: str, **options: Any) -> None:
  """Opens and runs a file in another process, unless it has been there before or was written here.

  Args:
    runtime: a function of the child: "litert", "onnx" or "stablehlo".
    content: the file's bytes.
    name: its name in errors.
    **options: of the runtime, plain values.

  Raises:
    UserError: the runtime refuses the file, ends the process or takes too long; or no process can be started.
  """
  if _digest(content, {}) in _passed or _digest(content, options) in _passed:
    return
  with _lock:
    try:
      child = _child()
    except OSError as error:
      raise UserError(f"{name} cannot be tried in a process of its own: {error.strerror}") from None
    seconds = SECONDS * (1 + len(content) / 2**30)
    request = {"runtime": runtime, "length": len(content), "options": options, "path": sys.path, "seconds": seconds}
    request["addresses"] = ADDRESSES + 8 * len(content)
    try:
      answer = _asked(child, [json.dumps(request).encode() + b"\n", content], time.monotonic() + seconds)
    except BaseException:
      _end(child)
      raise
    if answer is None:
      _end(child)
      raise UserError(
        f"{name} is damaged: {WORDS[runtime]} takes more than {math.ceil(seconds)} s to open it and to run it"
      )
    if not answer:
      raise UserError(f"{name} is damaged: the process of {WORDS[runtime]} ended at it ({_status(_end(child))})")
  if (reason := json.loads(answer)) is not None:
    raise refusal(WORDS[runtime], name, reason)
  _passed.add(_digest(content, options))


def _digest(content: bytes, options: dict[str, Any]) -> bytes:
  return hashlib.blake2b(content, key=json.dumps(options, sort_keys=True).encode()).digest()


def _child() -> "subprocess.Popen[bytes]":
  """Returns this process's child, a new one where there is none or it has ended."""
  child = _children.get(os.getpid())
  if child is not None and child.poll() is not None:
    _end(child)
    child = None
  if child is None:
    # memory is filled when it is taken and given back, so that reading what nobody wrote shows
    environment = {**os.environ, "MALLOC_PERTURB_": "165", "PYTHONWARNINGS": "ignore"}
    child = _children[os.getpid()] = subprocess.Popen(
      [sys.executable, "-P", str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
  return child


def _asked(child: "subprocess.Popen[bytes]", parts: list[bytes], end: float) -> bytes | None:
  """Returns a child's answer to a request in parts: b"" where it ended, and None where there is none in time."""
  assert child.stdin is not None and child.stdout is not None
  into, out = child.stdin.fileno(), child.stdout.fileno()
  os.set_blocking(into, False)
  left, answer = [memoryview(part) for part in parts if part], b""
  while (rest := end - time.monotonic()) > 0:
    readable, writable, _ = select.select([out], [into] if left else [], [], rest)
    if readable:
      found = os.read(out, 2**16)
      answer += found
      if not found:
        return b""
      if answer.endswith(b"\n"):
        return answer
    elif writable:
      try:
        left[0] = left[0][os.write(into, left[0][: 2**16]) :]
        left = left if left[0] else left[1:]
      except BrokenPipeError:
        return b""
  return None


def _end(child: "subprocess.Popen[bytes]", patience: float = 0.2) -> int:
  """Ends a child, and returns its status: its own, where it is ending already."""
  with contextlib.suppress(subprocess.TimeoutExpired):
    child.wait(patience)
  child.kill()
  _children.pop(os.getpid(), None)
  for pipe in (child.stdin, child.stdout):
    if pipe is not None:
      pipe.close()
  return child.wait()


def _status(status: int) -> str:
  if status >= 0:
    return f"status {status}"
  with contextlib.suppress(ValueError):
    return f"signal {-status}, {signal.Signals(-status).name}"
  return f"signal {-status}"


@atexit.register
def _last() -> None:
  if (child := _children.get(os.getpid())) is not None:
    _end(child, 0)
