"""kill -9 at random moments, resumed each time: the end is bitwise that of the uninterrupted run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from leanax.core.trees import named_leaves
from leanax.engine.store.model_file import load_tree
from tests.integration import kill_program

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("unbroken")
  kill_program.main(workdir)
  return workdir


def size(path):
  return path.stat().st_size if path.exists() else 0


def killed_after(workdir, growth, delay):
  """Runs the program and kills it `delay` seconds after metrics.jsonl grew so much; False if it came to its end."""
  path = workdir / "metrics.jsonl"
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  with subprocess.Popen(
    [sys.executable, str(ROOT / "tests/integration/kill_program.py"), str(workdir)],
    env=environment,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    started, smallest = time.monotonic(), size(path)
    while process.poll() is None and time.monotonic() - started < 120:
      smallest = min(smallest, size(path))  # the program cuts the lines that it will write again
      if size(path) > smallest + growth:
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        break
      time.sleep(0.001)
    errors = process.communicate()[1]
  assert process.returncode in (0, -signal.SIGKILL), errors
  assert "Traceback" not in errors, errors
  return process.returncode != 0


def check(workdir, uninterrupted):
  assert (workdir / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
  actual, desired = (named_leaves(load_tree(path / "final.safetensors")[0]) for path in (workdir, uninterrupted))
  assert actual.keys() == desired.keys()
  for name, leaf in desired.items():
    assert np.asarray(actual[name]).tobytes() == np.asarray(leaf).tobytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, uninterrupted, kills):
  seed = int.from_bytes(os.urandom(4))
  print("seed", seed)  # shown when the test fails
  rng = np.random.default_rng(seed)
  line = size(uninterrupted / "metrics.jsonl") / (kill_program.STEPS / kill_program.LOG_EVERY)
  # A run that is killed often must still come to its end: the kills share its lines between them.
  most = line * kill_program.STEPS / kill_program.LOG_EVERY / kills
  done = sum(killed_after(tmp_path, rng.uniform(0, most), rng.uniform(0, 0.03)) for _ in range(kills))
  assert done >= kills - 1, "the program came to its end before it could be killed"
  assert not killed_after(tmp_path, float("inf"), 0)
  assert int(load_tree(tmp_path / "final.safetensors")[0]["step"]) == kill_program.STEPS
  check(tmp_path, uninterrupted)
