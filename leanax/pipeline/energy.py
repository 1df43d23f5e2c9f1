"""The energy of one inference: by the processor's own counters where they can be read, else estimated from bits.

The counters are those of RAPL as Linux shows them (Documentation/power/powercap/powercap.rst): energy_uj of each zone
whose name is "package-N", microjoules that start anew at max_energy_range_uj. They are of the whole processor, idle
power and other programs included; since Linux 5.10 the superuser alone may read them. The estimate is of arithmetic
alone, without memory: each multiply-accumulate costs a product, in proportion to its bit-operations, and a sum. Source
of the picojoules: Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, figure 1.1.9, 45 nm
at 0.9 V.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

INTEGER_PRODUCT, INTEGER_SUM = 0.2, 0.1  # pJ: a product of 8 by 8 bits, a sum of 32
FLOAT_PRODUCT, FLOAT_SUM = 3.7, 0.9  # of 32 bits
SOURCE = "picojoules of 45 nm (Horowitz, ISSCC 2014), arithmetic alone, without memory"
POWERCAP = Path("/sys/class/powercap")
SECONDS = 0.1  # of one measurement; the counters move about once in a millisecond


def picojoules(weights: int, activations: int) -> float:
  """Returns the estimated energy of one multiply-accumulate of operands of these bits; 32 stands for floats."""
  if 32 in (weights, activations):
    return FLOAT_PRODUCT + FLOAT_SUM
  return INTEGER_PRODUCT * weights * activations / 64 + INTEGER_SUM


def estimate(layers: Iterable[Mapping[str, Any]]) -> float:
  """Returns the estimated joules of one inference, of layers' "macs", "weight_bits" and "input_bits"."""
  return 1e-12 * sum(one["macs"] * picojoules(one["weight_bits"], one["input_bits"]) for one in layers if one["macs"])


def counters(folder: Path = POWERCAP) -> tuple[list[Path], str]:
  """Returns the energy counter of each processor package, or none and why they cannot be read.

  A package that cannot be read is a reason to read none: the sum of the others would be too small.
  """
  found: dict[str, Path] = {}  # a package may have several interfaces, such as intel-rapl:0 and intel-rapl-mmio:0
  for zone in sorted(folder.glob("*rapl*:*")):
    try:
      name = (zone / "name").read_text(encoding="utf-8").strip()
      if name.startswith("package"):
        if _number(zone / "max_energy_range_uj") <= 0:
          raise ValueError("a range of 0")
        _number(zone / "energy_uj")
        found[name] = zone / "energy_uj"
    except PermissionError as error:
      return [], f"{error.filename} may be read by the superuser alone"
    except (OSError, ValueError) as error:
      return [], f"{zone} is no energy counter: {getattr(error, 'strerror', None) or error}"
  return [*found.values()], "" if found else f"this machine shows no RAPL counters in {folder}"


def measure(
  calls: Mapping[str, Callable[[], Any]], rounds: int = 3, folder: Path = POWERCAP
) -> tuple[dict[str, float], str]:
  """Returns the joules of one call of each, or none and why they cannot be measured.

  They are the median over rounds in which all take turns, so that a counter which another program sets to 0 in one
  round changes none.
  """
  zones, why = counters(folder)
  if not zones:
    return {}, why
  found: dict[str, list[float]] = {name: [] for name in calls}
  try:
    for _ in range(rounds):
      for name, call in calls.items():
        before, start, count = [*map(_number, zones)], time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
          call()
          count += 1
        spent = [_difference(zone, *pair) for zone, *pair in zip(zones, before, map(_number, zones), strict=True)]
        found[name].append(1e-6 * sum(spent) / count)
  except (OSError, ValueError) as error:
    return {}, f"the RAPL counters could not be read any more: {error}"
  joules = {name: statistics.median(each) for name, each in found.items()}
  if not all(joules.values()):  # as in virtual machines
    return {}, "the RAPL counters stand still"
  return joules, ""


def _number(path: Path) -> int:
  return int(path.read_text(encoding="utf-8"))


def _difference(zone: Path, before: int, after: int) -> int:
  """Returns the microjoules between two readings; a counter starts anew at its largest value."""
  return after - before if after >= before else after - before + _number(zone.with_name("max_energy_range_uj"))
