"""The energy of one inference: by the processor's own counters where they can be read, else estimated from bits.

The counters are those of RAPL as Linux shows them (Documentation/power/powercap, energy_uj of each package): of the
whole processor, idle power and other programs included. The estimate is of arithmetic alone, without memory: each
multiply-accumulate costs a product, in proportion to its bit-operations, and a sum. Source of the picojoules: Horowitz,
"Computing's energy problem (and what we can do about it)", ISSCC 2014, figure 1.1.9, 45 nm at 0.9 V.
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


def counters(folder: Path = POWERCAP) -> list[Path]:
  """Returns the energy counter of each processor package that this user may read; [] where there is none."""
  found = []
  for zone in sorted(folder.glob("*rapl*:*")):
    try:
      if (zone / "name").read_text(encoding="utf-8").startswith("package"):
        int((zone / "energy_uj").read_text(encoding="utf-8"))
        found.append(zone / "energy_uj")
    except (OSError, ValueError):  # no such counter, or of the superuser alone
      continue
  return found


def measure(calls: Mapping[str, Callable[[], Any]], rounds: int = 3, folder: Path = POWERCAP) -> dict[str, float]:
  """Returns the joules of one call of each, the median over rounds in which all take turns; {} without counters."""
  zones = counters(folder)
  if not zones:
    return {}
  found: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(rounds):
    for name, call in calls.items():
      before, start, count = _read(zones), time.perf_counter(), 0
      while time.perf_counter() - start < SECONDS:
        call()
        count += 1
      spent = [_difference(zone, *pair) for zone, *pair in zip(zones, before, _read(zones), strict=True)]
      found[name].append(1e-6 * sum(spent) / count)
  return {name: statistics.median(each) for name, each in found.items()}


def _read(zones: Iterable[Path]) -> list[int]:
  return [int(zone.read_text(encoding="utf-8")) for zone in zones]


def _difference(zone: Path, before: int, after: int) -> int:
  """Returns the microjoules between two readings; a counter starts anew at its largest value."""
  if after >= before:
    return after - before
  return after - before + int(zone.with_name("max_energy_range_uj").read_text(encoding="utf-8"))
