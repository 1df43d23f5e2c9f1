"""The table of a compression, one row per stage, for the terminal, for Markdown and for the report."""

import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from leanax.pipeline.tables import measures

Row = Mapping[str, Any]
ABSENT = "–"
AS_FAST = "within noise"
TOO_FEW = "measured in one round, too few to tell"
HEAD = 14  # characters of a line of a head on a terminal


class Column(NamedTuple):
  """A column: the row's key, a short head, how a value is written, and what it means in one sentence."""

  key: str
  head: str
  write: Callable[[Any], str]
  meaning: str


def interval(values: Sequence[float]) -> tuple[float, float]:
  """Returns (mean, half width) of the 95 % interval of Student's t over independent runs."""
  import numpy as np
  from scipy import stats

  x = np.asarray(values, np.float64)
  half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
  return float(x.mean()), float(half)


def over_seeds(values: Sequence[float | None], measure: measures.Measure = measures.ACCURACY) -> str:
  """Returns the mean over seeds with its interval, of a share "98.33 % ± 0.21"; a dash where a seed has none."""
  found = [value for value in values if value is not None]
  if len(found) < len(values):
    return ABSENT
  mean, half = interval(found)
  return (
    f"{measures.write(measure, mean)} ± {measures.amount(measure, 100 * half if measures.is_share(measure) else half)}"
  )


def percent(value: float) -> str:
  """Formats 0.98333 as 98.33 %."""
  return f"{100 * value:.2f} %"


def count(value: float) -> str:
  """Formats 12345 as 12,345."""
  return f"{value:,.0f}"


def size(value: float) -> str:
  """Bytes as B, kB or MB (of 1,000) to three digits."""
  for unit, scale in (("B", 1), ("kB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000)):
    shown = value / scale
    if shown < 999.5 or unit == "GB":
      return (
        f"{shown:.0f} {unit}" if unit == "B" or shown >= 99.95 else f"{shown:.{1 if shown >= 9.995 else 2}f} {unit}"
      )
  return ""


def microseconds(value: float) -> str:
  """Microseconds to three digits."""
  return f"{value:,.0f} µs" if value >= 99.95 else f"{value:.1f} µs"


def times(ratio: float) -> str:
  """Returns a ratio of speeds in words: "1.7x faster", and of one below 1 "1.7x slower"."""
  more = max(ratio, 1 / ratio)
  text = f"{more:.0f}" if more >= 9.95 else f"{more:.1f}"
  return f"{text}x {'faster' if ratio > 1 else 'slower'}"


def joules(value: float) -> str:
  """Joules as J, mJ, µJ or nJ to three digits."""
  for unit, scale in (("J", 1.0), ("mJ", 1e-3), ("µJ", 1e-6)):
    if value >= 0.9995 * scale:
      return f"{value / scale:.3g} {unit}"
  return f"{value / 1e-9:.3g} nJ"


def columns(
  metrics: Sequence[measures.Measure] = (measures.ACCURACY,), first: str = "first stage"
) -> tuple[Column, ...]:
  """Returns the columns of a table of stages, those of the metrics first.

  Args:
    metrics: plain data (`measures`).
    first: the name of the stage that the others are compared with.
  """
  found = [Column("name", "stage", str, "A stage of the compression; each starts where an earlier one ended.")]
  for measure in metrics:
    write, name, head = functools.partial(measures.write, measure), measure["name"], measures.head(measure)
    of_model = measures.sentence_of(measure, "of the JAX model on the test split, as training computes it")
    of_file = measures.sentence_of(measure, "of the exported file on the test split, run in the real runtime")
    found.append(Column(name, head, write, of_model))
    found.append(
      Column(f"file_{name}", f"{measure['title']} of the file{head.removeprefix(measure['title'])}", write, of_file)
    )
  return (*found, *(column._replace(head=column.head.replace("FIRST", first)) for column in _OTHERS))


_OTHERS = (
  Column(
    "agreement",
    "same answer as FIRST",
    percent,
    "Share of the test split on which the exported file predicts the class that the first stage's file does; without "
    "a file, the model.",
  ),
  Column(
    "answers_agree",
    "same answers as FIRST",
    percent,
    "Share of the answers for the test split, such as the classes of positions, that are those of the first stage's "
    "file; without a file, of the model.",
  ),
  Column(
    "difference",
    "mean difference from FIRST",
    percent,
    "Mean distance of the outputs that are numbers, for the test split, from those of the first stage's file, as a "
    "share of their standard deviation there, the mean over these outputs; without a file, of the model.",
  ),
  Column(
    "parameters", "parameters", count, "Weights, biases and batch-norm parameters that the model needs to predict."
  ),
  Column("nonzero", "non-zero", count, "Parameters that are not zero."),
  Column("macs", "MACs", count, "Multiply-accumulate operations for one example, zeros counted."),
  Column("file_bytes", "file size", size, "Size of the exported file (1 kB is 1,000 bytes)."),
  Column("latency_us", "latency", microseconds, "Median time of one example in the runtime, on one thread."),
  Column(
    "codes_differ",
    "differing codes",
    count,
    "Output codes of the test split in which the training's simulation and the integer reference differ.",
  ),
)

Metrics = Sequence[measures.Measure]


def used(rows: Sequence[Row], metrics: Metrics = (measures.ACCURACY,)) -> list[Column]:
  """Returns the columns for which some row has a value; rows are compared with the first one."""
  first = str(rows[0]["name"]) if rows else ""
  return [column for column in columns(metrics, first) if any(row.get(column.key) is not None for row in rows)]


def cell(row: Row, column: Column) -> str:
  """Returns one value as text; a dash where the row has none."""
  value = row.get(column.key)
  return ABSENT if value is None else column.write(value)


def format_table(rows: Sequence[Row], metrics: Metrics = (measures.ACCURACY,)) -> str:
  """Formats the table for a terminal: names to the left, numbers to the right.

  Args:
    rows: mappings with the keys of `columns`; what is missing or None is shown as a dash, and a column without values
      is left out.
    metrics: of the rows, plain data (`measures`).
  """
  columns = used(rows, metrics)
  heads = [textwrap.wrap(column.head, HEAD) for column in columns]
  deep = max(map(len, heads), default=0)
  above = [list(line) for line in zip(*([""] * (deep - len(head)) + head for head in heads), strict=True)]
  grid = above + [[cell(row, column) for column in columns] for row in rows]
  widths = [max(len(line[k]) for line in grid) for k in range(len(columns))]
  text = [
    "  ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths))) for line in grid
  ]
  return "\n".join([*text[:deep], "─" * max(map(len, text), default=0), *text[deep:]])


def format_markdown(rows: Sequence[Row], metrics: Metrics = (measures.ACCURACY,)) -> str:
  """Formats the same table in Markdown."""
  columns = used(rows, metrics)
  lines = [
    [column.head for column in columns],
    ["---" if column.key == "name" else "---:" for column in columns],
    *([cell(row, column).replace("|", "\\|") for column in columns] for row in rows),
  ]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)
