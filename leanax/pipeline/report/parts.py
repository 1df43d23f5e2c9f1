"""The parts of a report that HTML and Markdown share, as text cells: layers, classes, and when it was made."""

from collections.abc import Mapping, Sequence
from typing import Any

from leanax.pipeline.report import classes
from leanax.pipeline.tables.tables import ABSENT, count, microseconds

LAYERS = (
  "Bits are those of the weights' grid by those of what the layer reads; 32 stands for floats, in whichever type the "
  "file holds them. Rank is that of the weights as a matrix, of the most that it can be. SQNR is the power of what "
  "the float model makes there over that of what rounding has added so far, in decibels. Differing codes are those of "
  "the file in its runtime against the integer reference, of the first examples of the test split. Bytes are of the "
  "whole file, the rest of which is its graph and metadata."
)
TIMED = (
  "The time of a layer is that of a file of this layer alone, one example on one thread: the least of many calls, all "
  "files in turns, less that of a file that does next to nothing. Shares of time are of the sum of all layers"
)
CLASSES = (
  "Of the files in their runtimes, and of the models of stages without a file, on the test split; the last column says "
  "what missed examples are taken for."
)


def layer_table(rows: Sequence[Mapping[str, Any]], file_bytes: int, spent: float = 0.0) -> list[list[str]]:
  """Returns the layers of a file as text cells, the heads first; a column without figures is left out.

  Args:
    rows: of `report.layers`.
    file_bytes: of the file.
    spent: microseconds of all its layers together; 0 where they are not known.
  """
  macs = sum(row["macs"] for row in rows)
  heads = ["layer", "operator", "bits", "sparsity", "rank", "SQNR", "differing codes"]
  lines = [[*heads, "share of bytes", "share of MACs", "time", "share of time"]]
  for row in rows:
    multiplies = row["macs"] or row["sparsity"] is not None
    lines.append(
      [
        row["name"],
        row["operator"],
        f"{row['weight_bits']} × {row['input_bits']}" if multiplies else str(row["input_bits"]),
        ABSENT if row["sparsity"] is None else f"{100 * row['sparsity']:.1f} %",
        ABSENT if row["rank"] is None else f"{row['rank']} of {row['full_rank']}",
        ABSENT if row["sqnr"] is None else f"{row['sqnr']:.1f} dB",
        ABSENT if row["codes"] is None else f"{count(row['codes_differ'])} of {count(row['codes'])}",
        f"{100 * row['bytes'] / file_bytes:.1f} %" if file_bytes else ABSENT,
        f"{100 * row['macs'] / macs:.1f} %" if macs else ABSENT,
        *_time(row, spent),
      ]
    )
  used = [place for place in range(len(lines[0])) if any(line[place] != ABSENT for line in lines[1:])]
  return [[line[place] for place in used] for line in lines]


def _time(row: Mapping[str, Any], spent: float) -> list[str]:
  """Returns the time of a layer and its share of that of all."""
  if not spent or row["latency_us"] is None:
    return [ABSENT, ABSENT]
  return [microseconds(row["latency_us"]), f"{100 * row['latency_us'] / spent:.1f} %"]


def layer_tables(result: Mapping[str, Any]) -> list[tuple[str, list[list[str]], list[str]]]:
  """Returns (file, its layers as text cells, notes on them), of the recommended file first."""
  found, held = result.get("shipping") or {}, result.get("layers") or {}
  sizes = {one["name"]: one["bytes"] for one in found.get("files", [])}
  names = sorted((name for name in sizes if held.get(name)), key=lambda name: name != found["recommended"])
  times, narrow = result.get("layers_latency") or {}, result.get("narrow") or {}
  return [
    (
      name,
      layer_table(held[name], sizes[name], times[name]["sum"] if name in times else 0),
      [*map(narrowed, narrow.get(name, [])), *([_timed(times[name])] if name in times else [])],
    )
    for name in names
  ]


def narrowed(one: Mapping[str, Any]) -> str:
  """Returns what a reader has to know of a tensor of `report.shared_grids`, and what helps."""
  return (
    f"{one['tensor']} shares one grid with {', '.join(one['with'])}, whose range is up to {2 ** one['bits']:.0f} times "
    f"as wide: it has {one['bits']:.1f} bits fewer than on a grid of its own. graph.move_scale makes its channels as "
    "wide before the model is quantized."
  )


def _timed(found: Mapping[str, float]) -> str:
  """Returns how the layers of a file were timed, with what they take together and what the file takes."""
  whole, every = microseconds(found["whole"]), microseconds(found["sum"])
  return f"{TIMED}, {every}; the file as a whole took {whole} in the same turns, what a call costs by itself included."


def compared(result: Mapping[str, Any]) -> list[str]:
  """Returns the names of the first file, or stage, and of the recommended one; of the last where that is the first."""
  given = result.get("classes") or {}
  of, best = given.get("of") or given.get("values") or {}, (result.get("shipping") or {}).get("recommended")
  names = [str(name) for name in of]
  last = names[-1:] if best not in names[1:] else [str(best)]
  return [*dict.fromkeys(names[:1] + last)]


def class_table(result: Mapping[str, Any]) -> list[list[str]]:
  """Returns the accuracy, or another metric, per class as text cells, the heads first; [] where it is not known."""
  names = compared(result)
  if not names:
    return []
  return (classes.values_table if "values" in result["classes"] else classes.table)(result["classes"], names)


def class_note(result: Mapping[str, Any]) -> str:
  """Returns what a reader has to know of that table."""
  if "values" in result["classes"]:
    return classes.values_note(result["classes"])
  every = sum(map(bool, result["classes"]["examples"]))
  return f"{CLASSES} Shown are the {classes.MOST} worst of {every} classes." if every > classes.MOST else CLASSES


def made(result: Mapping[str, Any]) -> str:
  """Returns when a run was finished and how long it took: "Finished 2026-11-28 16:20 UTC after 1 min 24 s."."""
  run = result.get("run") or {}
  if not run:
    return ""
  last = max(one["finished"] for one in run.values())
  day, time = last[:10], last[11:16]
  return f"Finished {day} {time} UTC after {duration(sum(one['seconds'] for one in run.values()))}."


def duration(seconds: float) -> str:
  """Returns a time as "12 s", "1 min 24 s" or "3 h 5 min"."""
  whole = round(seconds)
  if whole < 60:
    return f"{whole} s"
  return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
