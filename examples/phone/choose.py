"""The most accurate file within a budget of bytes and of time, of all that a run made; the run is made where it is not.

    python -m examples.phone.choose --bytes=60000 --microseconds=200

The choice is by the accuracy on validation examples, so that the one on test examples, with its 95 % interval (Wilson),
is a fair figure of the chosen file. Times are of one example on one thread of this machine, of all files in turns in
one benchmark; the median is held to the budget. The status is 0 where a file fits, and 1 where none does.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from leanax.pipeline.config import flags as program

_BYTES = flags.DEFINE_integer("bytes", None, "The most bytes that the file may have.", 1, required=True)
_MICROSECONDS = flags.DEFINE_float(
  "microseconds", None, "The most that the median time of one example on one thread may be.", 0.0, required=True
)
_CONFIG = flags.DEFINE_string(
  "config", "examples/phone/config.py", "The config; its argument, as in config.py:short, is one of its presets."
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/phone", "The run's directory; a finished run is read.")


class File(NamedTuple):
  """An exported file as it was measured: bytes, microseconds, and (right, of how many) on two splits."""

  name: str
  bytes: int
  median: float
  least: float
  validation: tuple[int, int]
  test: tuple[int, int]


def over(file: File, size: int, microseconds: float) -> tuple[float, float]:
  """Returns the bytes and the microseconds by which a file exceeds the budgets; 0 within them."""
  return max(file.bytes - size, 0), max(file.median - microseconds, 0.0)


def choose(files: Sequence[File], size: int, microseconds: float) -> File | None:
  """Returns the file with most validation examples right of those within both budgets; the smaller one of equals."""
  fit = [one for one in files if not any(over(one, size, microseconds))]
  return max(fit, key=lambda one: (one.validation[0], -one.bytes), default=None)


def nearest(files: Sequence[File], size: int, microseconds: float) -> File:
  """Returns the file whose larger excess over the two budgets, each as a share of the budget, is least."""

  def excess(one: File) -> float:
    much, late = over(one, size, microseconds)
    return max(much / size, late / microseconds)

  return min(files, key=excess)


def missed(file: File, size: int, microseconds: float) -> str:
  """Returns the sentence of a file that is the nearest to budgets that none keeps."""
  much, late = over(file, size, microseconds)
  by = [f"{much:,} bytes too large"] * (much > 0) + [f"{late:,.1f} µs too slow"] * (late > 0)
  return f"no file fits; the nearest, {file.name}, is {' and '.join(by)}"


def wilson(right: int, count: int) -> tuple[float, float]:
  """Returns the ends of the 95 % interval of a share (E. B. Wilson, "Probable inference", 1927)."""
  z = 1.959964
  middle, half = right + z * z / 2, z * (right * (count - right) / count + z * z / 4) ** 0.5
  return (middle - half) / (count + z * z), (middle + half) / (count + z * z)


def table(files: Sequence[File], size: int, microseconds: float) -> str:
  """Returns all files for a terminal; a mark says which are within the budgets."""
  rows = [["file", "bytes", "median", "least", "validation", "test", "95 % interval", "fits"]]
  for one in files:
    (right, count), (low, high) = one.test, wilson(*one.test)
    found = one.validation[0] / one.validation[1]
    fits = "no" if any(over(one, size, microseconds)) else "yes"
    times = [f"{one.median:,.1f} µs", f"{one.least:,.1f} µs"]
    shares = [f"{100 * found:.2f} %", f"{100 * right / count:.2f} %", f"{100 * low:.2f} to {100 * high:.2f}"]
    rows.append([one.name, f"{one.bytes:,}", *times, *shares, fits])
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
  return "\n".join("  ".join([row[0].ljust(widths[0]), *line[1:]]) for row, line in zip(rows, lines, strict=True))


def measured(spec: str, folder: Path) -> tuple[list[File], str]:
  """Returns the files of a run, which is made or continued where it is not finished, and the processor.

  Raises:
    UserError: a mistake in the config, or a directory of another experiment.
  """
  import numpy as np

  from leanax import deploy
  from leanax.core.errors import UserError
  from leanax.engine.data import Split
  from leanax.pipeline import build
  from leanax.pipeline.compress import compress
  from leanax.pipeline.config import loading
  from leanax.pipeline.evaluate import of_file

  config = loading.experiment(spec)
  data = build.dataset(config)
  if not len(data.validation.labels):
    raise UserError(f"{spec} holds out no validation examples, by which a file is chosen; expected data.validation > 0")
  result, preprocess = compress(config, folder), deploy.Preprocessing(**build.preprocess(config))

  def right(file: deploy.Runner, split: Split) -> tuple[int, int]:
    found = of_file(file, split, preprocess).argmax(-1) == split.labels
    return int(np.sum(found)), len(found)

  files = []
  for one in result["shipping"].get("files", []):
    file, time = deploy.open_file(folder / "files" / one["name"]), one.get("latency")
    if time is None:
      raise UserError(
        f"{one['name']} has no latency in {folder}/result.json; expected a file that its runtime can time"
      )
    times = time["wall_median"], time["wall_min"]
    files.append(File(one["name"], one["bytes"], *times, right(file, data.validation), right(file, data.test)))
  if not files:
    raise UserError(f"{spec} exports no file; expected a stage whose 'export' names a format")
  return files, result["environment"]["processor"]


def main() -> None:
  from leanax.core.errors import UserError

  size, microseconds, folder = _BYTES.value, _MICROSECONDS.value, Path(_WORKDIR.value)
  if not microseconds > 0:
    raise UserError(f"--microseconds={microseconds:g}: expected more than 0")
  files, processor = measured(_CONFIG.value, folder)
  print(table(files, size, microseconds))
  print(f"times are of {processor}\n")
  best = choose(files, size, microseconds)
  if best is None:
    print(missed(nearest(files, size, microseconds), size, microseconds))
    sys.exit(1)
  path = folder / "files" / best.name
  print(f"the most accurate within {size:,} bytes and {microseconds:,.10g} µs, by validation examples: {path}")


if __name__ == "__main__":
  program.run(main, config=False)
