"""Files side by side: paired ratios, and the table; clocks are not tested, the statistics of their numbers are."""

import pytest

from leanax import deploy
from leanax.pipeline import benchmark


class Timed:
  """A file in the runtime whose rounds take the times in its name."""

  def __init__(self, file, threads):
    self.times, self.bytes, self.threads = iter(map(float, file.split("-"))), 1234, threads

  def latency(self, runs, warm_up):
    wall = next(self.times)
    return deploy.Latency(wall - 1, wall, wall / 2, runs, self.threads)


def test_ratios_are_paired_within_a_round(monkeypatch):
  monkeypatch.setattr(deploy, "open_file", Timed)
  # The machine is ten times slower in the second round; the pairs say two, and the medians alone would say four.
  result = benchmark.benchmark(["8-80-8", "4-40-20"], threads=2, rounds=3)
  first, second = result["models"]
  assert (first["wall_us"], first["cpu_us"], first["ratio"]) == (8.0, 4.0, 1.0)
  assert (second["wall_us"], second["cpu_us"], second["ratio"]) == (20.0, 2.0, 2.0)
  assert result["threads"] == 2 and result["environment"]["cores"] >= 1
  text = benchmark.table(result).splitlines()
  assert text[1].split() == ["8-80-8", "1.23", "kB", "8.0", "µs", "4.0", "µs", "1.00"]
  assert text[2].endswith("2.00")


def test_a_file_given_twice_is_measured_once(monkeypatch):
  monkeypatch.setattr(deploy, "open_file", Timed)
  result = benchmark.benchmark(["8-8", "8-8"], rounds=2)
  assert [row["name"] for row in result["models"]] == ["8-8"]
  assert result["models"][0]["ratio"] == pytest.approx(1.0)


def test_latencies_are_of_all_files_in_turns(monkeypatch):
  monkeypatch.setattr(deploy, "open_file", lambda file, threads=1: Timed(file, threads))
  found = benchmark.latencies({"a": "8-80-8", "b": "4-40-20", "c": "8.1-81-8.1"}, runs=30)
  assert found["a"] == {
    "wall_min": 7.0,
    "wall_median": 8.0,
    "cpu_min": 4.0,
    "runs": 30,
    "threads": 1,
    "rounds": [8.0, 80.0, 8.0],
    "as_fast": ["b", "c"],  # of b three rounds do not tell
  }


def test_what_is_within_noise():
  steady = [10.0, 10.1, 9.9, 10.0]
  assert benchmark.as_fast(steady, steady)
  assert benchmark.as_fast(steady, [1.03 * time for time in steady])  # below five in a hundred nothing is told
  assert not benchmark.as_fast(steady, [1.2 * time for time in steady])
  assert benchmark.as_fast(steady, [20.0, 5.0, 13.0, 9.0])
  assert benchmark.as_fast([1.0], [9.0])  # of one round nothing is known
