"""Progress: plain lines with rate and time left, a bar on a terminal, log lines not mixed with it."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from leanax.engine.train.progress import Progress, clock_text


class Clock:
  now = 0.0

  def __call__(self):
    return self.now


def test_plain_lines():
  stream, clock = io.StringIO(), Clock()
  with Progress(100, start=20, label="train", every=10, stream=stream, clock=clock) as progress:
    for step in range(21, 101):
      clock.now += 0.5
      progress.update(step, {"loss": 1 / step})
  lines = stream.getvalue().splitlines()
  assert lines == [
    "train: compiling",
    "train: step 21/100, the first after 0.5 s",  # the rate counts from here: before it stands the compilation
    "train: step 41/100, 2 steps/s, 0:30 left, loss 0.0244",
    "train: step 61/100, 2 steps/s, 0:20 left, loss 0.0164",
    "train: step 81/100, 2 steps/s, 0:10 left, loss 0.0123",
    "train: step 100/100, 2 steps/s, 0:00 left, loss 0.01",
  ]


def test_plain_lines_say_what_else_is_done_and_end_with_the_last_numbers():
  stream, clock = io.StringIO(), Clock()
  with Progress(8, label="train", stream=stream, clock=clock) as progress:
    for step in (4, 8):
      clock.now += 2
      progress.update(step)
      if step == 4:
        progress.doing("compiling the evaluation")
      clock.now += 100  # the last evaluation comes after the last step
      progress.update(step, {"validation accuracy": step / 10})
  assert stream.getvalue().splitlines() == [
    "train: compiling",
    "train: step 4/8, the first after 2.0 s",
    "train: step 4/8, compiling the evaluation",
    "train: step 8/8, 0.0392 steps/s, 0:00 left, validation accuracy 0.8",
  ]


def test_nothing_to_do_is_no_line():
  stream = io.StringIO()
  with Progress(8, start=8, stream=stream):
    pass
  assert stream.getvalue() == ""


def test_values_are_not_touched_unless_shown():
  class Untouchable:
    def __float__(self):
      raise AssertionError("waited for a device")

  with Progress(10, stream=io.StringIO(), clock=Clock()) as progress:
    progress.update(1, {"loss": Untouchable()})


def test_times():
  assert [clock_text(s) for s in (0, 7.2, 750, 3723)] == ["0:00", "0:07", "12:30", "1:02:03"]


PROGRAM = """
import sys, time, warnings
from absl import app, logging
from leanax.engine.train.progress import Progress

def main(argv):
  with Progress(40, label="train") as progress:
    for step in range(1, 41):
      time.sleep(0.02)
      if step == 20:
        progress.doing("compiling the evaluation")
        time.sleep(0.02)
      progress.update(step, {"loss": 0.5 if step < 40 else 0.25})
      if step % 10 == 0:
        logging.warning("logged at %d", step)
        print("printed at", step, file=sys.stderr)
  print("after the bar", file=sys.stderr)

app.run(main)
"""


def on_terminal(program):
  """The output of a program on its own terminal."""
  terminal, child_end = pty.openpty()
  fcntl.ioctl(child_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
  with subprocess.Popen([sys.executable, "-c", program], stderr=child_end, stdout=child_end) as process:
    os.close(child_end)
    shown = b""
    while True:
      try:
        part = os.read(terminal, 65536)
      except OSError:  # the terminal's other end is closed
        break
      if not part:
        break
      shown += part
  os.close(terminal)
  assert process.returncode == 0, shown.decode()
  return shown.decode()


def test_log_lines_and_bar_on_a_terminal():
  shown = on_terminal(PROGRAM)
  # The final text of each row: a carriage return starts the row again.
  rows = [row.rstrip("\r").split("\r")[-1].rstrip() for row in shown.split("\n")]
  logged = [row for row in rows if "logged at" in row]
  assert len(logged) == 4
  assert all(re.fullmatch(r"W\d+ .*\] logged at \d+", row) for row in logged), rows
  assert [row for row in rows if "printed" in row] == [f"printed at {step}" for step in (10, 20, 30, 40)], rows
  assert any(re.search(r"train: 40/40 \|█+\| 00:00 left, loss 0.25, .* steps/s", row) for row in rows), rows
  assert re.search(r"train, compiling: 0/40", shown) and re.search(r"train, compiling the evaluation: 19/40", shown)
  assert "after the bar" in rows


def test_log_lines_of_other_streams():
  out = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
  lines = out.stderr.splitlines()
  assert [line for line in lines if line.startswith("train: step")][-1].startswith("train: step 40/40, ")
  assert sum("logged at" in line for line in lines) == 4
