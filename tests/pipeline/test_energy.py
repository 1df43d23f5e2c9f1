"""Energy: the published picojoules, and counters of a directory that is written as Linux shows them."""

import itertools
from pathlib import Path

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


def zone(folder, number, name, counter, most=1_000_000):
  path = folder / f"intel-rapl:{number}"
  path.mkdir(parents=True)
  (path / "name").write_text(f"{name}\n")
  (path / "max_energy_range_uj").write_text(f"{most}\n")
  (path / "energy_uj").write_text(f"{counter}\n")
  return path / "energy_uj"


def test_packages_are_counted_once_and_their_parts_are_not(tmp_path):
  """Two sockets with their cores, the whole platform, and a second interface of the first socket."""
  found = [zone(tmp_path, "0", "package-0", 1), zone(tmp_path, "1", "package-1-die-0", 2)]
  zone(tmp_path, "0:0", "core", 3)
  zone(tmp_path, "2", "psys", 4)
  other = zone(tmp_path / "other", "0", "package-0", 1).parent
  other.rename(tmp_path / "intel-rapl-mmio:0")
  (tmp_path / "dtpm:0").mkdir()
  counters, why = energy.counters(tmp_path)
  assert sorted(counters) == found and why == ""


NONE = {"a": lambda: None}


def test_without_counters_the_reason_is_said(tmp_path):
  assert energy.measure(NONE, folder=tmp_path / "none") == (
    {},
    f"this machine shows no RAPL counters in {tmp_path}/none",
  )
  zone(tmp_path, "0:0", "core", 3)
  assert energy.measure(NONE, folder=tmp_path)[1].startswith("this machine shows no RAPL counters")


def test_of_packages_all_are_read_or_none(tmp_path, monkeypatch):
  """Since Linux 5.10 energy_uj may be read by the superuser alone, who runs the tests perhaps."""
  zone(tmp_path, "0", "package-0", 1)
  closed, read = zone(tmp_path, "1", "package-1", 2), Path.read_text

  def read_text(path, **keywords):
    if path == closed:
      raise PermissionError(13, "Permission denied", str(path))
    return read(path, **keywords)

  with monkeypatch.context() as patch:
    patch.setattr(Path, "read_text", read_text)
    assert energy.measure(NONE, folder=tmp_path) == ({}, f"{closed} may be read by the superuser alone")
  # A counter without its range cannot be read over its end, and one that holds no number not at all.
  (closed.parent / "max_energy_range_uj").unlink()
  assert energy.counters(tmp_path) == ([], f"{closed.parent} is no energy counter: No such file or directory")
  (closed.parent / "max_energy_range_uj").write_text("0")
  assert energy.counters(tmp_path)[1].endswith("is no energy counter: a range of 0")
  (closed.parent / "max_energy_range_uj").write_text("10")
  closed.write_text("?")
  assert "is no energy counter: invalid literal" in energy.counters(tmp_path)[1]


@pytest.fixture
def clock(monkeypatch):
  ticks = itertools.count(0.0, 0.04)  # three calls in a tenth of a second
  monkeypatch.setattr(energy.time, "perf_counter", lambda: next(ticks))


def spends(counters, amount, at=lambda: None, most=1_000_000):
  """A call that moves counters, which start anew at their range."""

  def one():
    for counter in counters:
      counter.write_text(str((int(counter.read_text()) + amount) % most))
    at()

  return one


def test_the_joules_of_one_call_over_a_counter_that_starts_anew(tmp_path, clock):
  counters = zone(tmp_path, "0", "package-0", 999_000), zone(tmp_path, "1", "package-1", 0)
  calls = {"small": spends(counters, 200), "large": spends(counters, 1000)}
  found, why = energy.measure(calls, folder=tmp_path)
  assert found == {"small": pytest.approx(400e-6), "large": pytest.approx(2000e-6)} and why == ""


def test_counters_that_start_anew_in_every_round(tmp_path, clock):
  counters = [zone(tmp_path, number, f"package-{number}", 3000, most=3100) for number in "01"]
  found, _ = energy.measure({"a": spends(counters, 1000, most=3100)}, folder=tmp_path)
  assert found == {"a": pytest.approx(2000e-6)}


def test_a_counter_that_another_program_sets_to_zero_changes_nothing(tmp_path, clock):
  (counter,) = counters = [zone(tmp_path, "0", "package-0", 500_000)]
  calls = itertools.count()

  def reset():
    if next(calls) == 1:
      counter.write_text("0")

  assert energy.measure({"a": spends(counters, 200, reset)}, folder=tmp_path)[0] == {"a": pytest.approx(200e-6)}


def test_counters_that_stand_still_or_go_away_measure_nothing(tmp_path, clock):
  counter = zone(tmp_path, "0", "package-0", 500_000)
  assert energy.measure(NONE, folder=tmp_path) == ({}, "the RAPL counters stand still")
  found, why = energy.measure({"a": lambda: counter.unlink(missing_ok=True)}, folder=tmp_path)
  assert found == {} and why.startswith("the RAPL counters could not be read any more: ") and "energy_uj" in why
