"""A run that is asked to stop, and goes on to the bits of the unbroken run; checkpoints in time; one program a run."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.engine.store import checkpoint
from leanax.pipeline import job, lock, saving, stage, stops
from leanax.pipeline.config import flags
from leanax.pipeline.seeds import train_seeds
from tests.integration import jobs

ONE = {"run": ("teacher",), "evaluations": 3, "checkpoint_every": 1000}  # a line every four steps, of twelve


@pytest.fixture
def signalled(monkeypatch):
  """Asks for a stop after so many more questions of the loop, one for each step, by SIGTERM."""
  state = stops._State()
  monkeypatch.setattr(stops, "_STATE", state)

  def after(steps):
    due, left = saving.Saving._due, [steps]

    def asked(self):
      left[0] -= 1
      if not left[0]:
        stops._note(signal.SIGTERM, None)
      return due(self)

    monkeypatch.setattr(saving.Saving, "_due", asked)

  def again():
    monkeypatch.undo()
    assert stops._STATE is not state

  return after, again


def contents(folder):
  paths = [folder / "metrics.jsonl", *sorted((folder / "models").glob("*"))]
  return {path.name: path.read_bytes() for path in paths}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("mode", "step"), [("jit", 2), ("jit", 7), ("jit", 8), ("jit", 12), ("shard_map", 7)])
def test_a_stopped_run_goes_on_with_equal_bits(tmp_path, signalled, mode, step):
  after, again = signalled
  whole = jobs.opened(tmp_path / "whole", **ONE, parallel=mode)
  jobs.train(whole)
  context = jobs.opened(tmp_path / "run", **ONE, parallel=mode)
  after(step)
  with pytest.raises(stops.Stopped, match=rf"stopped at step {step} of stage 'teacher'; the same command goes on"):
    stage.run_stage("teacher", context, {})
  with checkpoint.Checkpoints(tmp_path / "run/checkpoints/teacher", read_only=True) as found:
    assert found.latest() == step
  assert not job.model_file(context.folder, "teacher").exists()
  again()
  jobs.train(jobs.opened(tmp_path / "run", **ONE, parallel=mode))
  assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_it_goes_on_from_that_step(tmp_path, signalled, monkeypatch):
  after, again = signalled
  after(6)
  with pytest.raises(stops.Stopped):
    jobs.train(jobs.opened(tmp_path, **ONE))
  again()
  seen = []
  monkeypatch.setattr(saving.Saving, "_due", lambda self: seen.append(1))
  jobs.train(jobs.opened(tmp_path, **ONE))
  assert len(seen) == jobs.STEPS - 6


def test_several_seeds_at_once(tmp_path, signalled):
  after, again = signalled
  config = jobs.experiment(**ONE, seeds=2, seeds_over="vmap")
  train_seeds(config, tmp_path / "whole")
  after(7)
  with pytest.raises(stops.Stopped, match="step 7"):
    train_seeds(config, tmp_path / "run")
  again()
  train_seeds(config, tmp_path / "run")
  for seed in ("seed0", "seed1"):
    assert contents(tmp_path / "run" / seed) == contents(tmp_path / "whole" / seed)


def test_early_stopping_decides_the_same_after_a_stop(tmp_path, signalled):
  after, again = signalled
  given = {**ONE, "evaluations": 6, "stages__teacher__patience": 2}
  jobs.train(jobs.opened(tmp_path / "whole", **given))
  after(5)
  with pytest.raises(stops.Stopped):
    jobs.train(jobs.opened(tmp_path / "run", **given))
  again()
  jobs.train(jobs.opened(tmp_path / "run", **given))
  assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def steps_saved(monkeypatch, folder, **changes):
  found, save = [], checkpoint.Checkpoints.save
  monkeypatch.setattr(
    checkpoint.Checkpoints, "save", lambda self, step, *a, **k: (found.append(step), save(self, step, *a, **k))
  )
  jobs.train(jobs.opened(folder, **{**ONE, **changes}))
  return found


def test_a_stage_has_a_checkpoint_before_its_end(tmp_path, monkeypatch):
  assert steps_saved(monkeypatch, tmp_path) == [6]


def test_a_checkpoint_by_the_clock(tmp_path, monkeypatch):
  monkeypatch.setattr(saving, "SECONDS", 0.0)
  assert steps_saved(monkeypatch, tmp_path) == list(range(1, jobs.STEPS))


def test_metrics_of_a_checkpoint_are_kept_bit_for_bit():
  history = {"loss": np.array([0.1, 1e-30, np.inf], "f4"), "n": np.arange(6, dtype=np.int32).reshape(2, 3)}
  again = saving.decoded(json.loads(json.dumps(saving.encoded(history))))
  assert {name: (one.dtype, one.shape, one.tobytes()) for name, one in again.items()} == {
    name: (one.dtype, one.shape, one.tobytes()) for name, one in history.items()
  }


def test_a_signal_interrupts_what_nothing_holds(monkeypatch):
  monkeypatch.setattr(stops, "_STATE", stops._State())
  with pytest.raises(stops.Stopped, match="stopped by SIGHUP; the same command goes on"):
    stops._note(signal.SIGHUP, None)
  assert stops.asked() == signal.SIGHUP
  stops._note(signal.SIGTERM, None)  # the first one ends the program
  assert stops.asked() == signal.SIGHUP


@pytest.mark.parametrize(
  ("raised", "status", "words"),
  [
    (stops.Stopped(signal.SIGTERM), 143, "stopped by SIGTERM; the same command goes on with what was finished\n"),
    (
      OSError(28, "No space left on device", "runs/a/metrics.jsonl"),
      2,
      "error: 'runs/a/metrics.jsonl' cannot be written or read: No space left on device; the same command goes on "
      "once that is mended\n",
    ),
    (UserError("no"), 2, "error: no\n"),
  ],
)
def test_the_end_of_a_program(monkeypatch, capsys, raised, status, words):
  monkeypatch.setattr(stops, "_STATE", stops._State())
  with pytest.raises(SystemExit) as ended, flags._sentences():
    raise raised
  assert (ended.value.code, capsys.readouterr().err) == (status, words)
  stops._note(signal.SIGINT, None)  # interrupts the end of the program no more


def test_an_error_that_a_library_makes_of_a_signal(monkeypatch, capsys):
  monkeypatch.setattr(stops, "_STATE", stops._State())
  with pytest.raises(SystemExit) as ended, flags._sentences():
    try:
      stops._note(signal.SIGTERM, None)
    except stops.Stopped as stopped:
      raise ImportError("module") from stopped
  assert ended.value.code == 143 and capsys.readouterr().err.startswith("stopped by SIGTERM;")


def test_a_bug_is_no_full_disk():
  with pytest.raises(FileNotFoundError), flags._sentences():
    raise FileNotFoundError(2, "No such file")


def test_one_program_at_a_time(tmp_path):
  folder = tmp_path / "runs" / "a[1]"
  with lock.held(folder):
    text = r"is in use by another program.*: process \d+ on host \S+, since 20\d\d-.*; wait for its end, or use another"
    for other in (folder, tmp_path / "runs", folder / "seed0"):
      with pytest.raises(UserError, match=text), lock.held(other):
        raise AssertionError
    (folder / "config.json").write_text("{}")
  with lock.held(folder):
    pass
  assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_directory_of_nothing_is_not_left(tmp_path):
  with pytest.raises(UserError, match="no"), lock.held(tmp_path / "runs" / "a"):
    raise UserError("no")
  assert list(tmp_path.iterdir()) == []


def test_a_killed_program_holds_nothing(tmp_path):
  (tmp_path / lock.NAME).write_text('{"process": 1, "host": "a", "since": "b"}')
  part, other = tmp_path / "models" / ".0123456789abcdef.part", tmp_path / "models" / ".mine.part"
  part.parent.mkdir()
  part.touch()
  other.touch()
  with lock.held(tmp_path):
    assert not part.exists() and other.exists()


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
  import fcntl

  def flock(*_):
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr(fcntl, "flock", flock)
  with lock.held(tmp_path / "a"):
    pass
  assert capsys.readouterr().err.startswith("warning: the file system of ")


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("", "--workdir is empty"),
    ("x" * 300, "File name too long"),
    ("file", "File exists|Not a directory"),
    ("file/a", "Not a directory"),
    ("a/" * 1800, "is longer than 3500 characters"),
  ],
)
def test_a_directory_that_cannot_be_written_is_refused(tmp_path, monkeypatch, name, words):
  (tmp_path / "file").touch()
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=words), lock.held(name):
    raise AssertionError


def test_a_lock_that_its_owner_removes_meanwhile(tmp_path, monkeypatch):
  import fcntl

  flock, calls = fcntl.flock, []

  def after_the_owner(file, how):
    flock(file, how)
    calls.append(how)
    if len(calls) == 1:
      (tmp_path / lock.NAME).unlink()

  monkeypatch.setattr(fcntl, "flock", after_the_owner)
  with lock.held(tmp_path):
    assert len(calls) == 2 and (tmp_path / lock.NAME).is_file()


PROGRAM = """
import ctypes, signal, sys, time
from leanax.core.errors import UserError
from leanax.pipeline import stops
from leanax.pipeline.config import flags

def sleep():
  print("ready", flush=True)
  time.sleep(60)

def drop():  # as where the garbage collector calls back
  class Dropped:
    def __del__(self):
      sleep()
  Dropped()
  time.sleep(60)

def linger():  # a library's thread that does not end
  import threading
  stops.SECONDS = 0.5
  threading.Thread(target=time.sleep, args=(60,)).start()
  sleep()

def fail():
  import threading
  flags.LONGEST = 0.5
  threading.Thread(target=time.sleep, args=(60,)).start()
  print("ready", flush=True)
  raise UserError("no")

def hold():
  with stops.held():
    while True:
      sleep()

def block():  # in a library that hears of no signal
  stops.SECONDS = 0.5
  mutex, library = ctypes.create_string_buffer(128), ctypes.CDLL(None)
  library.pthread_mutex_lock(mutex)
  print("ready", flush=True)
  library.pthread_mutex_lock(mutex)

if __name__ == "__main__":
  signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests were started in the background
  what = globals()[sys.argv.pop()]
  flags.run(what, config=False)
"""


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
  ("what", "numbers"),
  [
    ("sleep", [signal.SIGTERM]),
    ("sleep", [signal.SIGINT]),
    ("drop", [signal.SIGTERM]),
    ("linger", [signal.SIGTERM]),
    ("hold", [signal.SIGHUP, signal.SIGINT]),
    ("block", [signal.SIGTERM]),
  ],
)
def test_a_program_ends_in_time(tmp_path, what, numbers):
  (tmp_path / "program.py").write_text(PROGRAM)
  with subprocess.Popen(
    [sys.executable, "program.py", what],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(jobs.ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    sent = time.monotonic()
    for number in numbers:
      process.send_signal(number)
      time.sleep(0.05)
    errors = process.communicate(timeout=30)[1]
  assert time.monotonic() - sent < 8
  assert process.returncode == 128 + numbers[0]
  assert errors.strip() == f"stopped by {numbers[0].name}; the same command goes on with what was finished"


def test_a_failed_program_ends_in_time_too(tmp_path):
  (tmp_path / "program.py").write_text(PROGRAM)
  done = subprocess.run(
    [sys.executable, "program.py", "fail"],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(jobs.ROOT)},
    capture_output=True,
    text=True,
    timeout=30,
    check=False,
  )
  assert (done.returncode, done.stderr) == (2, "error: no\n")
