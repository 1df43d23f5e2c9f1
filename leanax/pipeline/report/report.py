"""The report of a compression: one self-contained HTML page, written from plain data (result.json).

    {"title": str,
     "command": str,                                   how the run was started
     "examples": int,                                  size of the test split
     "metrics": [{"name", "title", "better", "unit"}], of the test split; the first is compared (`tables.measures`)
     "standard_error": float,                          of the first metric of the last row's file, over examples
     "config": {...},                                  the resolved config
     "environment": {"processor": ..., "cores": ..., "versions": {...}, ...},   any names, plain values or groups
     "rows": [{"name": ..., <keys of tables.columns>}, ...],                    the others are compared with the first
     "curves": {stage: {metric: [[step, value], ...]}},
     "shipping": {...},                                the exported files side by side (`report.shipping`)
     "layers": {file: [{...}, ...]},                   the layers of each file (`report.layers`)
     "layers_latency": {file: {"whole", "sum"}},       microseconds of a file and its layers (`report.layer_times`)
     "narrow": {file: [{...}, ...]},                   tensors with few levels of a shared grid (`report.shared_grids`)
     "classes": {...},                                 accuracies and confusions per class (`report.classes`)
     "run": {stage: {"finished": ..., "seconds": ...}}}

Every key but `rows` may be missing; what is missing is left out of the page.
"""

import json
import os
import pathlib
import string
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from leanax.core import files
from leanax.pipeline import patience
from leanax.pipeline.report import charts, classes, markup, parts, shipping
from leanax.pipeline.tables import measures, tables

TEMPLATE = pathlib.Path(__file__).parent / "templates" / "report.html"
BARS = ("parameters", "nonzero", "macs", "file_bytes", "latency_us")  # shown as lengths too
TRAINING = "Accuracy on the training batches"


def write_report(path: str | os.PathLike[str], result: Mapping[str, Any]) -> None:
  """Writes the page of `result` (see the module's docstring) to `path` atomically."""
  files.write(path, render(result))


def render(result: Mapping[str, Any]) -> str:
  """Returns the page as text."""
  rows: Sequence[tables.Row] = result.get("rows") or []
  styles = {row["name"]: index for index, row in enumerate(rows)}
  found = result.get("shipping") or {}
  compared = _compared(rows, found)
  return page(
    result,
    lead=shipping.sentence(found, result.get("examples", 0)),
    tiles=_tiles(compared, found, measures.main(result)),
    files=_files(found),
    note=_table_note(result, rows),
    table=_table(rows, styles, measures.of(result)),
    failures=failures(rows),
    meanings={column.head: column.meaning for column in tables.used(rows, measures.of(result))},
  )


def page(
  result: Mapping[str, Any],
  *,
  lead: str,
  files: str,
  note: str,
  table: str,
  meanings: Mapping[str, str],
  tiles: str = "",
  failures: str = "",
) -> str:
  """Returns a page: the parts that are given, and charts, classes, layers and origin as `result` has them.

  Args:
    result: see the module's docstring.
    lead: the sentence under the title, a text.
    files: the section of the files, in HTML.
    note: over what the stages were measured, a text.
    table: the stages, in HTML.
    meanings: of the columns of this table, texts.
    tiles: the main figures, in HTML.
    failures: of stages, in HTML.
  """
  rows: Sequence[tables.Row] = result.get("rows") or []
  styles = {row["name"]: index for index, row in enumerate(rows)}
  return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
    title=escape(str(result.get("title", "A compressed model"))),
    dark=charts.dark_rules(),
    lead=escape(lead),
    made=escape(parts.made(result)),
    tiles=tiles,
    files=files,
    table_note=escape(note),
    table=table,
    failures=failures,
    meanings=markup.definitions(meanings),
    charts="\n".join(_charts(result, rows, styles)),
    classes=_classes(result),
    layers=_layers(result),
    environment=_environment(result),
    config=escape(json.dumps(result.get("config", {}), indent=2, ensure_ascii=False)),
  )


def _compared(rows: Sequence[tables.Row], found: Mapping[str, Any]) -> Sequence[tables.Row]:
  """Returns the first row and the one of the recommended file, or the last one."""
  stages = [one["stage"] for one in found.get("files", []) if one["name"] == found["recommended"]]
  last = [row for row in rows if row["name"] in stages] or rows[-1:]
  return [*rows[:1], *last]


def _both(rows: Sequence[tables.Row], key: str) -> tuple[float, float] | None:
  """Returns the values of the first and the last row, where both have one."""
  if len(rows) < 2 or rows[0] is rows[-1] or rows[0].get(key) is None or rows[-1].get(key) is None:
    return None
  return rows[0][key], rows[-1][key]


def _times(ratio: float) -> str:
  return f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.1f}"


RATIOS = (
  ("file_bytes", "smaller file", "larger file"),
  ("macs", "fewer MACs", "more MACs"),
  ("latency_us", "faster in the runtime", "slower in the runtime"),
)


def _tiles(rows: Sequence[tables.Row], found: Mapping[str, Any], measure: measures.Measure) -> str:
  """Returns the main figures of the last row against the first, in large type; ratios are above 1 and say of what."""
  tiles = []
  reached = _both(rows, f"file_{measure['name']}")
  if reached:
    change, share = reached[1] - reached[0], measures.is_share(measure)
    number, unit = (f"{100 * change:+.2f}", "points") if share else (f"{change:+.3g}", measure["unit"])
    of_file = f"{measure['title']} of the file{measures.head(measure).removeprefix(measure['title'])}"
    tiles.append((f"{number}<small>{escape(unit)}</small>".replace("-", "−"), escape(of_file)))
  faster = shipping.ratio(shipping.chosen(found), found["files"][0]) if found else None  # paired, as in the sentence
  for key, less, more in RATIOS:
    pair = _both(rows, key)
    if pair and all(pair) and (key != "latency_us" or faster or not found):  # of one round there is no speed
      ratio = faster if key == "latency_us" and faster else pair[0] / pair[1]
      if key == "latency_us" and faster == 1:
        tiles.append(("≈1×", "as fast in the runtime, within noise"))
        continue
      tiles.append((f"{_times(max(ratio, 1 / ratio))}×", less if ratio >= 1 else more))
  if rows and rows[-1].get("codes_differ") is not None:
    tiles.append((tables.count(rows[-1]["codes_differ"]), "differing codes, simulation against integers"))
  if not tiles:
    return ""
  inside = "".join(f'<div class="tile"><b>{value}</b><span>{label}</span></div>' for value, label in tiles)
  versus = f"{escape(str(rows[-1]['name']))} against {escape(str(rows[0]['name']))}" if rows[0] is not rows[-1] else ""
  return f'<p class="versus">{versus}</p><div class="tiles">{inside}</div>'


def _files(found: Mapping[str, Any]) -> str:
  """Returns the section of all files, the recommended one marked."""
  if not found:
    return ""
  table = markup.table(shipping.table(found), "files", found["recommended"])
  return markup.section("Which file to ship", shipping.notes(found), table, program(found))


def _layers(result: Mapping[str, Any]) -> str:
  """Returns the section of the layers of each file, the recommended one's shown and the others' folded."""
  found = parts.layer_tables(result)
  inside = [
    markup.details(name, markup.table(lines, "layers") + "".join(map(markup.note, notes)), not place)
    for place, (name, lines, notes) in enumerate(found)
  ]
  return markup.section("Layers of the files", parts.LAYERS if inside else "", *inside)


def _classes(result: Mapping[str, Any]) -> str:
  """Returns the section of the classes: accuracies, and the confusion matrices folded."""
  lines = parts.class_table(result)
  if not lines:
    return ""
  matrices = (
    []
    if "values" in result["classes"]
    else [
      markup.details(
        f"What {name} takes each class for", markup.matrix(*classes.confusion(result["classes"], name), "class")
      )
      for name in reversed(parts.compared(result))
    ]
  )
  return markup.section("Classes", parts.class_note(result), markup.table(lines, "classes"), *matrices)


def program(found: Mapping[str, Any]) -> str:
  """Returns the lines that run the recommended file."""
  if not found.get("snippet"):
    return ""
  summary = f"Run {found['recommended']} with numpy and the runtime alone, beside this page"
  return markup.details(summary, f"<pre>{escape(found['snippet'])}</pre>")


def _table_note(result: Mapping[str, Any], rows: Sequence[tables.Row]) -> str:
  examples = result.get("examples")
  if not examples:
    return ""
  measure, error = measures.main(result), result.get("standard_error")
  text = f"Measured on the {examples:,} examples of the test split."
  if measure["name"] != measures.ACCURACY["name"]:
    return text + (f" The standard error of one {measure['title']} is {_amount(measure, error)}." if error else "")
  # One example more or less; the binomial standard error at the last row's accuracy.
  accuracy = (rows[-1].get("file_accuracy") or rows[-1].get("accuracy")) if rows else None
  if accuracy:
    error = 100 * (accuracy * (1 - accuracy) / examples) ** 0.5
    text += f" One example is {100 / examples:.2g} points; the standard error of one accuracy is {error:.2g} points."
  return text


def _amount(measure: measures.Measure, error: float) -> str:
  return f"{100 * error:.2g} points" if measures.is_share(measure) else f"{error:.2g} {measure['unit']}".rstrip()


def _table(rows: Sequence[tables.Row], styles: Mapping[str, int], metrics: Sequence[measures.Measure]) -> str:
  columns = tables.used(rows, metrics)
  most = {key: max((row.get(key) or 0 for row in rows), default=0) for key in BARS}
  head = "".join(f'<th scope="col" title="{escape(c.meaning)}">{escape(c.head)}</th>' for c in columns)
  body = []
  for row in rows:
    cells = []
    for column in columns:
      text, value = escape(tables.cell(row, column)), row.get(column.key)
      if column.key == "name":
        dot = f'<svg viewBox="-10 -10 20 20" aria-hidden="true">{charts.mark(0, 0, styles[row["name"]])}</svg>'
        cells.append(f'<th scope="row">{dot}{text}</th>')
        continue
      bar = ""
      if column.key in BARS and value is not None and most[column.key]:
        bar = f'<span class="bar" style="width:{100 * value / most[column.key]:.1f}%"></span>'
      exact = f' title="{value:,} bytes"' if column.key == "file_bytes" and value is not None else ""
      cells.append(f"<td{exact}>{text}{bar}</td>")
    body.append(f"<tr>{''.join(cells)}</tr>")
  return markup.scroll(f'<table class="stages"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>')


def failures(rows: Sequence[tables.Row]) -> str:
  """Returns a line for each stage that lacks a file: why; and one for each stage with patience: how it ended."""
  lines = [(row["name"], f"was trained, but not exported: {row['export']}") for row in rows if row.get("export")]
  lines += [(row["name"], patience.sentence(row["ended"])) for row in rows if row.get("ended")]
  return "".join(f'<p class="note"><b>{escape(str(name))}</b> {escape(text)}</p>' for name, text in lines)


def _charts(result: Mapping[str, Any], rows: Sequence[tables.Row], styles: Mapping[str, int]) -> list[str]:
  starts, measure = _starts(result), measures.main(result)
  key, name = f"file_{measure['name']}", measure["title"][:1].upper() + measure["title"][1:]
  points = [
    charts.Point(
      str(row["name"]),
      row["file_bytes"],
      row[key],
      f"{row['name']}: {measures.write(measure, row[key])}, {row['file_bytes']:,} bytes",
      styles[row["name"]],
    )
    for row in rows
    if row.get("file_bytes") and row.get(key) is not None
  ]
  tick = _percent_tick if measures.is_share(measure) else lambda value: f"{value:.4g} {measure['unit']}".rstrip()
  title = f"{name} against file size"
  links = [(start, name) for name, start in starts.items()]
  sizes = charts.Axis("file size (log)", lambda value: tables.size(value).replace(".0 ", " "), log=True)
  drawing = charts.scatter(points, sizes, charts.Axis(measure["title"], tick), title, links)
  best = "Up" if measures.sign(measure) > 0 else "Down"
  note = f"Of the exported files, in the runtime. {best} and to the left is better."
  figures = [markup.section(title, note, drawing)]
  steps = charts.Axis("step, counted on along a chain of stages" if starts else "step", tables.count)
  for metric, title, write, log in _curves(measure, name, tick):
    series = _series(result, metric, starts, styles)
    floor = _floor(series) if not log and measures.is_share(measure) and measures.sign(measure) > 0 else None
    drawing = charts.lines(series, steps, charts.Axis(title, write, log=log), title, floor)
    figures.append(markup.section(title, "", _legend(series), drawing) if drawing else "")
  return [figure for figure in figures if figure]


def _curves(
  measure: measures.Measure, name: str, tick: Callable[[float], str]
) -> list[tuple[str, str, Callable[[float], str], bool]]:
  """Returns (series, title, how a value is written, log axis) of the training curves, in the page's order."""
  found = [
    (f"validation_{measure['name']}", f"{name} on the validation split", tick, False),
    ("loss", "Training loss", lambda value: f"{value:.3g}", True),
  ]
  accuracy = measure["name"] == measures.ACCURACY["name"]
  return [*found, ("train_accuracy", TRAINING, tick, False)] if accuracy else found


def _starts(result: Mapping[str, Any]) -> dict[str, str]:
  """Returns, for each stage that starts from another, that stage, as the config says."""
  stages = result.get("config", {}).get("stages", {})
  return {name: stage["start"] for name, stage in stages.items() if stage.get("start")}


def _series(
  result: Mapping[str, Any], metric: str, starts: Mapping[str, str], styles: Mapping[str, int]
) -> list[charts.Line]:
  """Returns the lines of one metric; a stage's steps continue from the end of the stage that it starts from."""
  curves = result.get("curves") or {}

  def first_step(stage: str) -> float:
    before = starts.get(stage)
    if before is None or before not in curves:
      return 0.0
    return first_step(before) + max((step for points in curves[before].values() for step, _ in points), default=0)

  lines = []
  for stage, metrics in curves.items():
    points = [(first_step(stage) + step, value) for step, value in metrics.get(metric, [])]
    if points:
      lines.append(charts.Line(stage, points, styles.get(stage, len(styles))))
  return lines


def _floor(series: Sequence[charts.Line]) -> float | None:
  """Returns the low end of an accuracy axis: below where training ends, not below where it starts."""
  lasts = [line.points[-1][1] for line in series]
  ends = [last for last in lasts if last is not None]
  return 1 - max(0.05, 4 * (1 - min(ends))) if ends else None


def _percent_tick(value: float) -> str:
  return f"{100 * value:.4g} %"


def _legend(series: Sequence[charts.Line]) -> str:
  items = []
  for line in series:
    stroke = f'<line x1="0" x2="34" y1="7" y2="7" stroke="{charts.colour(line.style)}" stroke-width="2"/>'
    stroke += charts.mark(17, 7, line.style, 5.0)
    items.append(f'<li><svg viewBox="0 0 34 14" aria-hidden="true">{stroke}</svg>{escape(line.name)}</li>')
  return f'<ul class="legend">{"".join(items)}</ul>'


def _environment(result: Mapping[str, Any]) -> str:
  rows: dict[str, str] = {}
  if result.get("command"):
    rows["command"] = str(result["command"])
  if run := result.get("run"):
    rows["run time"] = ", ".join(f"{name} {parts.duration(one['seconds'])}" for name, one in run.items())
  for name, value in (result.get("environment") or {}).items():
    grouped = isinstance(value, Mapping)
    rows[name] = ", ".join(f"{key} {inner}" for key, inner in value.items()) if grouped else str(value)
  return markup.definitions(rows)
