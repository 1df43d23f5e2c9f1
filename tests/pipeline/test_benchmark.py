"""Files side by side: paired ratios, and the table; clocks are not tested, the statistics of their numbers are."""

import numpy as np
import pytest

from leanax import deploy
from leanax.pipeline import benchmark


class Timed:
  """A file in the runtime whose rounds take the times in its name, half of them on two threads."""

  def __init__(self, file, threads):
    self.times, self.bytes, self.threads = iter(map(float, file.split("-"))), 1234, threads

  def latency(self, runs, warm_up):
    wall = next(self.times) / self.threads
    return deploy.Latency(wall - 1, wall, wall / 2, runs, self.threads)

  def repeat(self):
    return lambda: None


@pytest.fixture
def timed(monkeypatch):
  monkeypatch.setattr(deploy, "open_file", lambda file, threads=1: Timed(file, threads))
  monkeypatch.setattr(benchmark, "peaks", lambda files: [4_000_000 * threads for _, threads in files])
  monkeypatch.setattr(benchmark.energy, "counters", lambda folder: ([], "no counters here"))


def test_ratios_are_paired_within_a_round(timed):
  # The machine is ten times slower in the second round; the pairs say two, and the medians alone would say four.
  result = benchmark.benchmark(["8-80-8", "4-40-20"], rounds=3)
  first, second = result["models"]
  assert (first["wall_us"], first["wall_min_us"], first["cpu_us"], first["ratio"]) == (8.0, 7.0, 4.0, 1.0)
  assert (second["wall_us"], second["wall_min_us"], second["cpu_us"], second["ratio"]) == (20.0, 3.0, 2.0, 2.0)
  assert first["as_fast"] == ["4-40-20"] and first["threads"] == 1 and result["environment"]["cores"] >= 1
  heads, one, other, energy, machine = benchmark.table(result).splitlines()
  assert heads.split("  ")[-2:] == ["against 8-80-8", "within noise of"] and "peak memory" in heads
  assert " ".join(one.split()) == "8-80-8 1 1.23 kB 8.0 µs 7.0 µs 4.0 µs 4.00 MB – 4-40-20"
  assert energy == "the energy was not measured: no counters here"
  assert other.endswith("within noise  8-80-8") and machine.endswith(f"{result['environment']['cores']} cores")


def test_of_one_round_no_speed_is_told(timed):
  line = benchmark.table(benchmark.benchmark(["8", "4"], rounds=1)).splitlines()[2]
  assert line.endswith("measured in one round, too few to tell  –")


def test_numbers_of_threads_take_turns(timed):
  result = benchmark.benchmark(["8-8.1-8", "20-20-20.1"], threads=(1, 2), rounds=3)
  assert [(row["name"], row["threads"]) for row in result["models"]] == [
    ("8-8.1-8", 1),
    ("20-20-20.1", 1),
    ("8-8.1-8", 2),
    ("20-20-20.1", 2),
  ]
  text = benchmark.table(result).splitlines()
  assert text[0].split("  ")[-2] == "against 8-8.1-8 on 1 thread"
  assert text[2].endswith("2.5x slower  –") and text[3].endswith("2.0x faster  –") and " 0.4" not in text[2]
  assert result["models"][3]["peak_bytes"] == 8_000_000


def test_a_file_given_twice_is_measured_once(timed):
  result = benchmark.benchmark(["8-8", "8-8"], rounds=2)
  assert [row["name"] for row in result["models"]] == ["8-8"]
  assert result["models"][0]["ratio"] == pytest.approx(1.0)


def test_files_of_one_name_in_two_folders_are_two(monkeypatch, timed):
  monkeypatch.setattr(deploy, "open_file", lambda file, threads: Timed(file.split("/")[1], threads))
  result = benchmark.benchmark(["a/8-8", "b/8-8"], rounds=2)
  assert [row["name"] for row in result["models"]] == ["a/8-8", "b/8-8"]


def test_peaks_are_of_files_in_processes_of_their_own(tmp_path):
  """A file with 16 MB of weights takes that much more than a small one, before and after it."""
  paths = []
  for width in (8, 2000):
    network = deploy.lift(lambda v, x: x @ v, np.ones((width, width), np.float32), np.ones((1, width), np.float32))
    paths.append(tmp_path / f"{width}.tflite")
    paths[-1].write_bytes(deploy.litert().write(network))
  small, large = map(str, paths)
  before, most, none, after = benchmark.peaks([(small, 1), (large, 1), (str(tmp_path / "none.tflite"), 1), (small, 1)])
  assert before > 0 and most - before > 0.95 * 4 * 2000**2 and none is None
  assert after == pytest.approx(before, rel=0.2)


def test_latencies_are_of_all_files_in_turns(timed):
  found = benchmark.latencies({"a": "8-80-8", "b": "4-40-20", "c": "8.1-81-8.1"}, runs=30)
  assert found["a"] == {
    "wall_min": 7.0,
    "wall_median": 8.0,
    "cpu_min": 4.0,
    "runs": 30,
    "threads": 1,
    "rounds": [8.0, 80.0, 8.0],
    "as_fast": ["b", "c"],  # of b three rounds do not tell
    "no_joules": "no counters here",
  }


def test_what_is_within_noise():
  steady = [10.0, 10.1, 9.9, 10.0]
  assert benchmark.as_fast(steady, steady)
  assert benchmark.as_fast(steady, [1.03 * time for time in steady])  # below five in a hundred nothing is told
  assert not benchmark.as_fast(steady, [1.2 * time for time in steady])
  assert benchmark.as_fast(steady, [20.0, 5.0, 13.0, 9.0])
  assert benchmark.as_fast([1.0], [9.0])  # of one round nothing is known
