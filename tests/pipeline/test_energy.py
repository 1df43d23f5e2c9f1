"""Energy: the published picojoules, and counters of a directory that is written as Linux shows them."""

import itertools

import pytest

from leanax.pipeline import energy


def test_the_estimate_by_hand():
  assert energy.picojoules(32, 32) == energy.picojoules(4, 32) == pytest.approx(4.6)  # 3.7 and 0.9
  assert energy.picojoules(8, 8) == pytest.approx(0.3)  # 0.2 and 0.1
  assert energy.picojoules(4, 8) == pytest.approx(0.2)
  layers = [
    {"macs": 1_000_000, "weight_bits": 32, "input_bits": 32},
    {"macs": 2_000_000, "weight_bits": 8, "input_bits": 8},
    {"macs": None, "weight_bits": 32, "input_bits": 32},
  ]
  assert energy.estimate(layers) == pytest.approx(4.6e-6 + 0.6e-6)


def zone(folder, number, name, counter):
  path = folder / f"intel-rapl:{number}"
  path.mkdir(parents=True)
  (path / "name").write_text(f"{name}\n")
  (path / "max_energy_range_uj").write_text("1000000\n")
  (path / "energy_uj").write_text(f"{counter}\n")
  return path / "energy_uj"


def test_packages_are_counted_and_their_parts_are_not(tmp_path):
  found = [zone(tmp_path, "0", "package-0", 1), zone(tmp_path, "1", "package-1", 2)]
  zone(tmp_path, "0:0", "core", 3)
  (tmp_path / "dtpm:0").mkdir()
  unreadable = tmp_path / "intel-rapl:2"
  (unreadable / "energy_uj").mkdir(parents=True)  # a counter that cannot be read
  (unreadable / "name").write_text("package-2")
  assert energy.counters(tmp_path) == found
  assert energy.counters(tmp_path / "none") == []
  assert energy.measure({"a": lambda: None}, folder=tmp_path / "none") == {}


def test_the_joules_of_one_call_over_a_counter_that_starts_anew(tmp_path, monkeypatch):
  counters = zone(tmp_path, "0", "package-0", 999_000), zone(tmp_path, "1", "package-1", 0)
  clock = itertools.count(0.0, 0.04)  # three calls in a tenth of a second
  monkeypatch.setattr(energy.time, "perf_counter", lambda: next(clock))

  def call(spent):
    def one():
      for counter in counters:
        counter.write_text(str((int(counter.read_text()) + spent) % 1_000_000))

    return one

  found = energy.measure({"small": call(200), "large": call(1000)}, folder=tmp_path)
  assert found == {"small": pytest.approx(400e-6), "large": pytest.approx(2000e-6)}
