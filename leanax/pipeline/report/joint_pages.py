"""The pages of several seeds, in HTML and in Markdown, written from the data of `report.joint`."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from leanax.pipeline.report import markup, plain, report, shipping
from leanax.pipeline.report.joint import RULE, TIMED, rows_of
from leanax.pipeline.tables import measures
from leanax.pipeline.tables.tables import (
  ABSENT,
  AS_FAST,
  Column,
  columns,
  count,
  interval,
  microseconds,
  over_seeds,
  size,
  times,
)


def speed(one: Mapping[str, Any]) -> str:
  """Returns how fast a file is beside the first one, over the seeds: "1.7x slower"; "" where it is not known."""
  if len(one["ratio"]) < 2:
    return ""
  mean, half = interval([math.log(ratio) for ratio in one["ratio"]])
  return AS_FAST if abs(mean) <= half or mean == 0 else times(math.exp(mean))


def sentence(found: Mapping[str, Any]) -> str:
  """Returns which file to ship, its bytes, what it loses over the seeds and how fast it is; "" without files."""
  if not found["files"]:
    return ""
  best = next(one for one in found["files"] if one["name"] == found["recommended"])
  first = found["files"][0]
  text = f"Ship {best['name']} of seed {found['ship']['seed']} ({found['ship']['file']}): {size(_mean(best['bytes']))}"
  if best is not first:
    less = _mean(first["bytes"]) / _mean(best["bytes"])
    text += f", {f'{less:.1f} times smaller' if less >= 1 else f'{1 / less:.1f} times larger'} than {first['name']}"
  if best["name"] != found["against"]:
    mean, half = interval(best["lost"])
    lost = {"points": mean, "half": half}
    words = measures.lost_words(shipping.measure_of(found), lost, found["against"])
    text += f". Over {len(found['seeds'])} seeds it {words}"
    if not shipping.is_shown(lost, found["most_lost"]):
      text += f"; that it loses {shipping.at_most(found)} is {shipping.NOT_SHOWN} by so few"
  if best["wall_us"]:
    words = speed(best) if best is not first else ""
    said = f" ({f'{words} as fast as' if words == AS_FAST else f'{words} than'} {first['name']})" if words else ""
    text += f". It takes {microseconds(statistics.median(best['wall_us']))} for one example on one thread{said}"
    text += shipping.busy(statistics.median(best["wall_us"]), statistics.median(best["cpu_us"]))
  return f"{text}."


def _mean(values: Sequence[float]) -> float:
  return statistics.fmean(values)


def file_table(found: Mapping[str, Any]) -> list[list[str]]:
  """Returns the files as text cells, the heads first."""
  first, measure = found["files"][0], measures.main(found)
  lost = measures.lost_head(measure, found["against"])
  heads = ["file", "size", measures.head(measure), lost, "most lost", "median time"]
  rows = [[*heads, f"speed against {first['name']}"]]
  for one in found["files"]:
    mean, half = interval(one["lost"])
    same = one["name"] == found["against"]
    rows.append(
      [
        one["name"],
        size(_mean(one["bytes"])),
        over_seeds(one[measure["name"]], measure),
        ABSENT if same else shipping.lost_cell(found, {"points": mean, "half": half}),
        ABSENT if same else measures.amount(measure, max(one["lost"])),
        microseconds(statistics.median(one["wall_us"])) if one["wall_us"] else ABSENT,
        (speed(one) or ABSENT) if one is not first else ABSENT,
      ]
    )
  return rows


def stage_table(found: Mapping[str, Any]) -> list[list[str]]:
  """Returns the stages as text cells, the heads first."""
  of = {key: measure for measure in measures.of(found) for key in (measure["name"], f"file_{measure['name']}")}
  of |= dict.fromkeys(("agreement", "answers_agree", "difference"), measures.ACCURACY)
  used = [column for column in _columns(found) if any(None not in row[column.key] for row in found["rows"])]
  lines = [["stage", *(column.head for column in used)]]
  for row in found["rows"]:
    cells = []
    for column in used:
      values = row[column.key]
      if None in values:
        cells.append(ABSENT)
      else:
        cells.append(over_seeds(values, of[column.key]) if column.key in of else column.write(_mean(values)))
    lines.append([row["name"], *cells])
  return lines


def _columns(found: Mapping[str, Any]) -> list[Column]:
  return [column for column in columns(measures.of(found), found["rows"][0]["name"]) if column.key in rows_of(found)]


def _as_one(found: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the means in the form of one run's result, for the parts that are the same."""
  means = [
    {"name": row["name"], **{key: _mean(row[key]) for key in rows_of(found) if None not in row[key]}}
    for row in found["rows"]
  ]
  files = [{"name": one["name"], "bytes": _mean(one["bytes"])} for one in found["files"]]
  ships = {"recommended": found["recommended"], "files": files} if files else {}
  return {**found, "rows": means, "shipping": ships}


def note(found: Mapping[str, Any]) -> str:
  """Returns over what the figures of stages are taken."""
  return (
    f"Means over the seeds {', '.join(map(str, found['seeds']))}, on the {count(found['examples'])} examples of the "
    "test split. Each has its own report, in seedK/report.html."
  )


def render(found: Mapping[str, Any]) -> str:
  """Returns the page in HTML."""
  files = ""
  if found["files"]:
    files = markup.section(
      "Which file to ship",
      f"{shipping.rule(found)} {RULE} {TIMED}",
      markup.table(file_table(found), "files", found["recommended"]),
      report.program({"recommended": found["ship"]["file"], "snippet": found["ship"]["snippet"]}),
    )
  return report.page(
    _as_one(found),
    lead=sentence(found),
    files=files,
    note=note(found),
    table=markup.table(stage_table(found)),
    failures=report.failures(found.get("failures", [])),
    meanings={column.head: column.meaning for column in _columns(found)},
  )


def markdown(found: Mapping[str, Any]) -> str:
  """Returns the page in Markdown."""
  pieces = [f"# {found['title']}"]
  if found["files"]:
    pieces += [sentence(found), plain.table(file_table(found)), f"{shipping.rule(found)} {RULE} {TIMED}"]
    pieces.append(plain.program(found["ship"]["snippet"]))
  pieces += ["## Stages", plain.table(stage_table(found)), *plain.failures(found.get("failures", [])), note(found)]
  return plain.joined([*pieces, *plain.common(_as_one(found)), plain.origin(found)])
