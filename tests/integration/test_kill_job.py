"""kill -9 of the whole main job at random moments, the same command again each time: the end is bitwise the same."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from leanax.pipeline.compress import compress
from tests.integration import jobs

EPOCHS = 24  # a stage; 96 steps


def longer():
  """Longer stages with frequent checkpoints, so that kills fall anywhere: in steps, saves, exports, reports."""
  stages = {name: {**stage, "epochs": EPOCHS} for name, stage in jobs.EXPERIMENT["stages"].items()}
  return {"stages": stages, "evaluations": 24, "checkpoint_every": 8}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  """The uninterrupted run of the program, whose files say its command, and its seconds once everything was compiled."""
  folder = tmp_path_factory.mktemp("unbroken")
  compress(jobs.experiment(**longer()), folder)
  config = jobs.write(folder / "tiny.py", **longer())
  started = time.monotonic()
  assert run(config, folder.with_name("timed"), None) == 0
  return folder.with_name("timed"), config, time.monotonic() - started


def run(config, folder, seconds):
  """The exit status of the program, killed after so many seconds of training if it has not ended by then."""
  command = [sys.executable, "-m", "scripts.compress", f"--config={config}", f"--workdir={folder}"]
  with (folder.parent / "stderr.txt").open("w+") as errors:
    process = subprocess.Popen(command, cwd=jobs.ROOT, env=os.environ.copy(), stdout=subprocess.DEVNULL, stderr=errors)
    try:
      process.wait(timeout=seconds if seconds is not None else 300)
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGKILL)
      process.wait()
    errors.seek(0)
    text = errors.read()
  assert process.returncode in (0, -signal.SIGKILL), text
  assert "Traceback" not in text and "damaged" not in text, text
  return process.returncode


def contents(folder):
  paths = [folder / "metrics.jsonl", *(folder / "models").glob("*.safetensors"), *(folder / "files").glob("*.tflite")]
  return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.slow  # tests/integration/test_kill.py does the same to the loop alone
@pytest.mark.parametrize("kills", [2, 10])
def test_killed_at_random_moments(tmp_path, uninterrupted, kills):
  whole, config, seconds = uninterrupted
  seed = int.from_bytes(os.urandom(4))
  print("seed", seed, "seconds", seconds)  # shown when the test fails
  rng = np.random.default_rng(seed)
  folder, killed = tmp_path / "run", 0
  # Each start pays for its imports again; the rest of the whole run's time is divided by the kills.
  start = min(2.0, seconds / 3)
  for _ in range(kills):
    after = start + rng.uniform(0, (seconds - start) / (1 + 0.5 * kills))
    killed += run(config, folder, after) != 0
  assert killed >= min(kills, 2) - 1, "the program came to its end before it could be killed"
  assert run(config, folder, None) == 0
  actual, desired = contents(folder), contents(whole)
  assert actual.keys() == desired.keys()
  assert [name for name in desired if actual[name] != desired[name]] == []
  assert (folder / "report.html").is_file()
