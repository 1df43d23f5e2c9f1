"""Which file to ship: the files of a run, each compared with the first one, and the one that is recommended.

Files are compared by the first metric of the run, example by example on the same ones (`engine.metrics.paired`). Of
accuracies: b of n that the first file alone has right and c that the other alone has right make the difference
(b - c) / n. Its standard error is sqrt(b + c - (b - c)^2 / n) / n, with half an example added to each of the four
counts, so that files which never differ have an error bar too.
Source: McNemar (1947); Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", 2005.
"""

import statistics
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanax.pipeline import energy
from leanax.pipeline.report.snippet import snippet
from leanax.pipeline.tables import measures
from leanax.pipeline.tables.measures import ACCURACY, Measure
from leanax.pipeline.tables.tables import ABSENT, AS_FAST, TOO_FEW, joules, microseconds, size, times

if TYPE_CHECKING:
  from leanax.engine.metrics import Metric

NOT_SHOWN = "not shown"  # of a loss that is small as measured, with an interval that reaches beyond the limit
TIMED = (
  "Times are of one example on one thread, of all files in turns in one benchmark. A speed is the median of the ratios "
  "within each round, which need not be the ratio of the median times; two files are within noise where the 95 % "
  "interval of their ratio over the rounds holds 1, or where they are less than 5 % apart."
)
BUSY = 2  # times its CPU time that a file takes on one thread where other programs have the processor
ERRORS = (
  "± is 1.96 standard errors of the difference on the same examples, by leaving out one at a time; of shares of "
  "examples with half an example added to each of four cases (both files right, either, none)."
)

COMPRESSED = "Compressed sizes are those of zlib at level 9."
ENERGY = (
  "The energy of one inference is that of the whole processor while it repeats it (RAPL), idle power and other "
  "programs included."
)


def shipping(
  rows: Sequence[Mapping[str, Any]],
  metric: "Metric",
  folder: Path,
  preprocess: Mapping[str, Any] | None,
  most_lost: float = 1.0,
) -> dict[str, Any]:
  """Returns the files of a run side by side, and the name of the recommended one; {} where there is none.

  Args:
    rows: of the stages, each with its "exports": {suffix: figures of a file, with its statistics of the metric}.
    metric: by which files are compared.
    folder: of the files.
    preprocess: {"scale", "mean", "std"} of the run's config; None where inputs are no pixels, or an example has no one
      class, for which there is no snippet.
    most_lost: points that the recommended file may lose to the first one; of a metric that is no share, per cent of the
      first one's value.

  Returns:
    {"against", "most_lost", "recommended", "snippet", "metric", "files": [{"name", "stage", "bytes",
    "compressed_bytes", the metric's name, "lost", "latency", "energy"}]}: "lost" is {"points", "half"} against the
    first row, with the half width of the 95 % interval; it is below 0 for a file that is better. "most_lost" is in the
    same unit. "latency" is that of `benchmark.latencies`, and "energy" {"joules", "measured"} of one inference, with
    "why" it was not measured.
  """
  found = [_file(row, suffix, metric.name, folder) for row in rows for suffix in row.get("exports", {})]
  if not found:
    return {}
  measure, first, reference = metric.described(), rows[0], rows[0]["statistics"]
  for one in found:
    one["lost"] = paired(metric, reference, one.pop("statistics"))
  named = found[0]["name"] if first.get("exports") else f"the model of {first['name']}"
  value = first[f"file_{metric.name}" if first.get("exports") else metric.name]
  most = most_lost if measures.is_share(measure) else most_lost / 100 * abs(value or 0)
  best = recommended(found, most, measure)
  dtype = next(one["input"] for one in found if one["name"] == best)
  program = snippet(f"{folder.name}/{best}", dtype, preprocess) if preprocess else ""
  limit = {"against": named, "most_lost": most, "metric": measure}
  return limit | {"recommended": best, "snippet": program, "files": found}


def _file(row: Mapping[str, Any], suffix: str, metric: str, folder: Path) -> dict[str, Any]:
  """Returns what is known of one file, and its statistics of the metric."""
  figures, path = row["exports"][suffix], folder / f"{row['name']}{suffix}"
  kept = {"latency": figures["latency"]} if "latency" in figures else {}
  measured = figures.get("latency", {}).get("joules")
  if measured or figures.get("layers"):
    kept["energy"] = {"joules": measured or energy.estimate(figures["layers"]), "measured": bool(measured)}
    kept["energy"] |= {} if measured else {"why": figures.get("latency", {}).get("no_joules", "")}
  return {
    "name": path.name,
    "stage": row["name"],
    "bytes": figures["file_bytes"],
    "compressed_bytes": len(zlib.compress(path.read_bytes(), 9)) if path.is_file() else None,
    "input": figures.get("input", ""),
    metric: figures[f"file_{metric}"],
    "statistics": figures["statistics"],
    **kept,
  }


def paired(metric: "Metric", first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
  """Returns what `other` loses to `first` (`measures.lost`), from the statistics of the same examples."""
  import numpy as np  # the report's page is written without it

  from leanax.engine import metrics

  one, two = ({key: np.asarray(x) for key, x in each.items()} for each in (first, other))
  return measures.lost(metric.described(), *metrics.paired(metric, one, two))


def at_most(found: Mapping[str, Any]) -> str:
  """Returns the limit in words."""
  measure, most = measure_of(found), found["most_lost"]
  if not measures.is_share(measure):
    return f"at most {measures.amount(measure, most)} {measure['unit']}".rstrip() + f" of {measure['title']}"
  of_what = "" if measure == ACCURACY else f" of {measure['title']}"
  return f"at most {most:g} point{'' if most == 1 else 's'}{of_what}"


def rule(found: Mapping[str, Any]) -> str:
  """Returns the rule by which a file is recommended."""
  measure = measure_of(found)
  share = "" if measures.is_share(measure) else ", in % of the value of the first one"
  best = "the most accurate" if measure == ACCURACY else f"the one with the best {measure['title']}"
  text = (
    f"The recommended file is the smallest of those that lose {at_most(found)} to the first one, as measured "
    f"(most_lost in the config{share}); where there is none, {best}. Where the 95 % interval of such a loss "
    f"reaches further it is {NOT_SHOWN}: with more examples the file may lose more than that."
  )
  return text if measure == ACCURACY else f"{text} Of {measure['title']} {measure['better']} is better."


def is_shown(lost: Mapping[str, float], most_lost: float) -> bool:
  """Returns whether a loss is at most so many points up to the end of its interval."""
  return lost["points"] + lost["half"] <= most_lost


def recommended(files: Sequence[Mapping[str, Any]], most_lost: float, measure: Measure = ACCURACY) -> str:
  """Returns the name of the file to ship, by `rule`; `most_lost` is in the unit of what is lost."""
  good = [one for one in files if one["lost"]["points"] <= most_lost]
  if good:
    return min(good, key=lambda one: one["bytes"])["name"]
  return max(files, key=lambda one: (measures.sign(measure) * one[measure["name"]], -one["bytes"]))["name"]


def measure_of(found: Mapping[str, Any]) -> Measure:
  """Returns the metric by which the files of a run, or those of several seeds, are compared."""
  return found.get("metric") or measures.main(found)


def chosen(found: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns the recommended file."""
  return next(one for one in found["files"] if one["name"] == found["recommended"])


def ratio(one: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
  """Returns how many times as fast as another file one is, 1 within noise; None where one was not measured, or once."""
  if not one.get("latency") or not other.get("latency") or _is_once(one):
    return None
  if other["name"] in one["latency"]["as_fast"]:
    return 1.0
  rounds = zip(other["latency"]["rounds"], one["latency"]["rounds"], strict=True)
  return statistics.median(theirs / own for theirs, own in rounds)


def _is_once(one: Mapping[str, Any]) -> bool:
  """Returns whether a file was measured in a single round, which shows no noise."""
  return len(one["latency"]["rounds"]) < 2


def busy(wall: float, cpu: float) -> str:
  """Returns a sentence where a file waited for the processor, from microseconds on one thread; else ""."""
  if not 0 < BUSY * cpu <= wall:
    return ""
  return f". The machine was busy: the CPU time of one example is {microseconds(cpu)}"


def speed(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
  """Returns how fast a file is beside another one, such as "1.7x slower"; "" where one was not measured."""
  if one.get("latency") and other.get("latency") and _is_once(one):
    return TOO_FEW
  found = ratio(one, other)
  return "" if found is None else AS_FAST if found == 1 else times(found)


def _beside(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
  words = speed(one, other)
  return (
    f"within noise as fast as {other['name']}" if words == AS_FAST else f"{words} than {other['name']}" * bool(words)
  )


def sentence(found: Mapping[str, Any], examples: int = 0) -> str:
  """Returns which file to ship, its bytes, what it loses and how fast it is; "" without files."""
  if not found:
    return ""
  best = chosen(found)
  first, measured = found["files"][0], [one for one in found["files"] if one.get("latency")]
  text = f"Ship {best['name']}: {size(best['bytes'])}"
  text += f", {size(best['compressed_bytes'])} compressed" if best["compressed_bytes"] else ""
  if best is not first:
    less = first["bytes"] / best["bytes"]
    text += f", {f'{less:.1f} times smaller' if less >= 1 else f'{1 / less:.1f} times larger'} than {first['name']}"
  if best["name"] != found["against"]:
    where = f" on {examples:,} test examples" if examples else ""
    text += f". It {measures.lost_words(measure_of(found), best['lost'], found['against'], where)}"
    if not is_shown(best["lost"], found["most_lost"]):
      text += f"; that it loses {at_most(found)} is {NOT_SHOWN} by so few"
  if best in measured:
    fastest = min(measured, key=lambda one: one["latency"]["wall_median"])
    beside = [one for one in (first, fastest) if one is not best]
    if len(beside) == 2 and first is fastest:
      beside = beside[:1]
    said = [_beside(best, one) + (", the fastest" if one is fastest else "") for one in beside if speed(best, one)]
    said += ["the fastest"] if best is fastest and len(measured) > 1 and not best["latency"]["as_fast"] else []
    if said and _is_once(best):
      said = [f"{TOO_FEW} its speed from that of others"]
    took = microseconds(best["latency"]["wall_median"])
    text += f". It takes {took} for one example on one thread" + (f" ({'; '.join(said)})" if said else "")
    text += busy(best["latency"]["wall_median"], best["latency"]["cpu_min"])
  return f"{text}."


def notes(found: Mapping[str, Any]) -> str:
  """Returns what a reader has to know of the table of files."""
  powered = [one["energy"]["measured"] for one in found["files"] if one.get("energy")]
  text = [rule(found), ERRORS, COMPRESSED] + [TIMED] * any(one.get("latency") for one in found["files"])
  if powered:
    text.append(ENERGY if powered[0] else _estimated(found["files"]))
  return " ".join(text)


def _estimated(files: Sequence[Mapping[str, Any]]) -> str:
  """Returns that energies are estimates, of what, and why they were not measured."""
  why = next((one["energy"]["why"] for one in files if one.get("energy") and one["energy"].get("why")), "")
  reason = f" It was not measured: {why}." if why else ""
  return f"The energy of one inference is an estimate: {energy.SOURCE}.{reason}"


def table(found: Mapping[str, Any]) -> list[list[str]]:
  """Returns the files as text cells: a row of heads, and one for each file."""
  first, timed = found["files"][0], any(one.get("latency") for one in found["files"])
  measure, against = measure_of(found), found["against"]
  powered = [one["energy"]["measured"] for one in found["files"] if one.get("energy")]
  columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "file": lambda one: one["name"],
    "size": lambda one: size(one["bytes"]),
    "compressed": lambda one: size(one["compressed_bytes"]) if one["compressed_bytes"] else ABSENT,
    measures.head(measure): lambda one: measures.write(measure, one[measure["name"]]),
    measures.lost_head(measure, against): lambda one: (
      lost_cell(found, one["lost"]) if one["name"] != against else ABSENT
    ),
  }
  if timed:
    times_of = {"median time": "wall_median", "least time": "wall_min", "CPU time": "cpu_min"}
    columns |= {head: lambda one, key=key: microseconds(one["latency"][key]) for head, key in times_of.items()}
  if powered:
    columns["energy" if powered[0] else "energy, estimated"] = lambda one: joules(one["energy"]["joules"])
  if timed:
    columns[f"speed against {first['name']}"] = lambda one: speed(one, first) if one is not first else ABSENT
    columns["within noise of"] = lambda one: ", ".join(one["latency"]["as_fast"] if not _is_once(one) else ()) or ABSENT
  return [[*columns], *([_cell(one, write) for write in columns.values()] for one in found["files"])]


def _cell(one: Mapping[str, Any], write: Callable[[Mapping[str, Any]], str]) -> str:
  try:
    return write(one)
  except KeyError:  # not measured of this one
    return ABSENT


def lost_cell(found: Mapping[str, Any], lost: Mapping[str, float]) -> str:
  """Returns what is lost with its error bar, and whether a small loss is not shown to be one."""
  measure, most = measure_of(found), found["most_lost"]
  words = f" ({NOT_SHOWN})" if lost["points"] <= most and not is_shown(lost, most) else ""
  return f"{measures.amount(measure, lost['points'])} ± {measures.amount(measure, lost['half'])}{words}"
