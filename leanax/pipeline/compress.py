"""The whole job: the stages of an experiment in order, a row of the table for each, and the report."""

import json
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leanax import deploy
from leanax.core import files
from leanax.core.errors import UserError
from leanax.engine.data import Split
from leanax.engine.metrics import standard_error
from leanax.pipeline import build, exporting, patience, run_times, workdir
from leanax.pipeline import trained as models
from leanax.pipeline.benchmark import latencies
from leanax.pipeline.config.experiment import Experiment, model_code
from leanax.pipeline.environment import command, environment, portable, use_compilation_cache
from leanax.pipeline.job import Context, model_file
from leanax.pipeline.report.answers import agreement, answers, is_plain
from leanax.pipeline.report.classes import classes, values
from leanax.pipeline.report.measure import measure_file, measure_model
from leanax.pipeline.report.parts import narrowed
from leanax.pipeline.report.plain import write_markdown
from leanax.pipeline.report.report import write_report
from leanax.pipeline.report.shipping import shipping
from leanax.pipeline.stage import curves, opened, run_stage
from leanax.pipeline.trained import Trained

OF_LAYERS = ("layers", "layers_latency", "narrow")  # of a file
LATENCIES = "latency"  # the name of the figures of latency.json
# Of a row: kept beside its files, and not in the rows of result.json.
INNER = ("decisions", "statistics", "per_class", "exports", "command", "model_crc32")


def compress(config: Experiment, folder: str | Path) -> dict[str, Any]:
  """Runs every stage of `config.run` that is not finished yet, and writes result.json, report.html and report.md.

  What cannot be exported is refused before anything trains (`exporting.check`). What only trained numbers show ends no
  run: the stage's row says it under "export", and a warning on stderr.

  Args:
    config: an experiment (`pipeline.config`).
    folder: the run's directory; a finished stage is read from it, an unfinished one resumes at its last checkpoint.

  Returns:
    The content of result.json; see `pipeline.report.report`.
  """
  context = open_run(config, folder, export=True)
  run_times.start(context.folder)
  done: dict[str, Trained] = {}
  rows: list[dict[str, Any]] = []
  result: dict[str, Any] = {}
  reference = _Reference(context)
  for name in config.run:
    start, found = time.perf_counter(), model_file(context.folder, name).is_file()
    done[name] = run_stage(name, context, done)
    rows.append(_row(name, context, done[name], reference) | _ended(name, context))
    if not found:
      run_times.note(context.folder, name, time.perf_counter() - start)
    result = _write(context, rows)
  _add_latencies(context, rows)
  result = _write(context, rows)
  for row in rows:
    if row.get("export"):
      print(f"warning: stage {row['name']!r} was trained, but not exported: {row['export']}", file=sys.stderr)
  for words in dict.fromkeys(narrowed(one) for found in result["narrow"].values() for one in found):
    print(f"warning: {words}", file=sys.stderr)
  return result


def _ended(name: str, context: Context) -> dict[str, Any]:
  """Returns how a stage with patience ended, for its row; {} of others."""
  metric, most = build.metrics(context.config)[0], context.config.stages[name].patience
  curve = curves(name, context).get(patience.key(metric), []) if most else []
  return {"ended": patience.ended(curve, context.jobs[name].steps, metric)} if curve else {}


def _exported(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
  """Returns the figures of each file by its name."""
  return {f"{row['name']}{suffix}": one for row in rows for suffix, one in row.get("exports", {}).items()}


def _of_files(rows: Sequence[dict[str, Any]], key: str) -> dict[str, Any]:
  """Returns a figure, such as the predicted classes, of each file, and of each stage without one."""
  found = {}
  for row in rows:
    each = {name: one[key] for name, one in _exported([row]).items() if key in one}
    found |= each or ({row["name"]: row[key]} if key in row else {})
  return found


def _classes(rows: Sequence[dict[str, Any]], test: Split) -> dict[str, Any]:
  """Returns the figures of each class: those of a metric that has some, or what examples of one class are taken for."""
  if each := _of_files(rows, "per_class"):
    measure = next(iter(each.values()))["metric"]
    return values({name: one["values"] for name, one in each.items()}, test.classes, measure)
  if each := _of_files(rows, "decisions"):
    return classes(each, test.labels.tolist(), test.classes)
  return {}


def _write(context: Context, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Writes result.json and the report of the stages that are finished, and returns the former."""
  test = context.data.test
  preprocess = build.preprocess(context.config, test) if test.has_pictures and is_plain(test.labels) else None
  metrics, exported = build.metrics(context.config), _exported(rows)
  last = {key: np.asarray(x) for key, x in [*_of_files(rows, "statistics").values()][-1].items()}
  result = {
    "title": context.config.name or "A compressed network",
    "command": portable(command()),
    "examples": len(test.ids),
    "metrics": [metric.described() for metric in metrics],
    "standard_error": standard_error(metrics[0], last),
    "config": workdir.resolved(context.config),
    "environment": environment(),
    "rows": [{key: value for key, value in row.items() if key not in INNER} for row in rows],
    "curves": {row["name"]: curves(row["name"], context) for row in rows},
    "shipping": shipping(rows, metrics[0], context.folder / "files", preprocess, context.config.most_lost),
    "layers": {name: figures.get("layers", []) for name, figures in exported.items()},
    "layers_latency": {name: one["layers_latency"] for name, one in exported.items() if "layers_latency" in one},
    "narrow": {name: one["narrow"] for name, one in exported.items() if one.get("narrow")},
    "classes": _classes(rows, test),
    "run": run_times.read(context.folder),
  }
  files.write(context.folder / "result.json", json.dumps(result, indent=1) + "\n")
  write_report(context.folder / "report.html", result)
  write_markdown(context.folder / "report.md", result)
  return result


def open_run(config: Experiment, folder: str | Path, export: bool = False) -> Context:
  """Loads an experiment's data, prepares all of its stages, and claims `folder` for it; nothing is compiled yet.

  With `export` their files are prepared too.

  Raises:
    UserError: a mistake in the config, a directory of another experiment, data that is not there.
  """
  context = opened(config, Path(folder), export)
  workdir.claim(folder, config)  # last, so that a config with a mistake does not claim the directory
  use_compilation_cache()
  return context


class _Reference:
  """The answers of a run's first stage for the test split, with which those of all stages are compared.

  They are kept with the figures of the stage where an example has one class, and computed again otherwise.
  """

  def __init__(self, context: Context):
    self.context, self.held = context, {}

  def agreement(self, outputs: Any, name: str) -> dict[str, float]:
    """Returns how far outputs of a stage agree with the first one's."""
    labels = self.context.data.test.labels
    given = answers(outputs, labels)
    first = self.context.config.run[0]
    if name == first:
      self.held = given
    return agreement(given, self.held or self._read(first))

  def _read(self, first: str) -> Mapping[str, Any]:
    folder, test = self.context.folder, self.context.data.test
    row = files.kept(folder / "files" / f"{first}.json")
    if "decisions" in row:
      self.held = {"": np.asarray(row["decisions"])}
      return self.held
    trained = models.load(model_file(folder, first), model_code(self.context.config))[0]
    outputs = models.predict(trained, test.images)
    for suffix in row.get("exports", {}):
      outputs = deploy.open_file(folder / "files" / f"{first}{suffix}").run(
        models.prepared(trained.recipe, test.images)
      )
      break
    self.held = answers(outputs, test.labels)
    return self.held


def _row(name: str, context: Context, trained: Trained, reference: _Reference) -> dict[str, Any]:
  """Returns the stage's row, measured once and saved next to its files; one that lacks a file is not saved."""
  stage = context.config.stages[name]
  kept, wanted = context.folder / "files" / f"{name}.json", exporting.formats(stage)
  words = {key: text for key in workdir.WORDS if (text := getattr(context.config, key))}
  options = {
    suffix: {**({"format": text} if "(" in text else {}), **words}
    for suffix, text in zip(wanted, stage.export, strict=True)
  }
  model, started = files.checksum(model_file(context.folder, name)), portable(command())
  if row := _kept(kept, name):
    held = row.get("exports", {suffix: {} for suffix in wanted})
    same = all(_options(one) == options.get(suffix, {}) for suffix, one in held.items())
    changed = [kept.with_suffix(key) for key, one in held.items() if not _is_whole(kept.with_suffix(key), one)]
    if list(held) == list(wanted) and same:
      if not changed and row.get("model_crc32") == model and "statistics" in row:
        return row
      started = row.get("command", started)  # the same files again, byte by byte
      for path in changed:
        print(f"warning: {path} is missing or was changed; it is made again", file=sys.stderr)
    for suffix in {*held} - {*wanted}:
      kept.with_suffix(suffix).unlink(missing_ok=True)
  metrics = build.metrics(context.config)
  row, outputs = measure_model(trained, context.data.test, metrics)
  shown = outputs
  about = exporting.description(trained.recipe, context.config, name, started)
  exports: dict[str, Any] = {}
  failures: list[str] = []
  for suffix, one in wanted.items():
    try:
      path, seconds = kept.with_suffix(suffix), context.config.layer_seconds
      found, file, given = measure_file(trained, context.data.test, path, outputs, one, about, seconds, metrics)
      if not exports:  # the row is of its first file
        row, shown = row | {key: value for key, value in found.items() if key not in OF_LAYERS}, given
      exports[suffix] = {**found, "file_crc32": files.checksum(path), "input": file.input.dtype, **options[suffix]}
    except UserError as error:
      failures.append(f"{suffix.removeprefix('.')}: {error}")
    except Exception as error:  # whatever a format or its runtime raises: the trained stage and its row stand
      traceback.print_exc()
      failures.append(f"{suffix.removeprefix('.')}: {type(error).__name__}: {' '.join(str(error).split())}")
  row |= reference.agreement(shown, name)
  row = {"name": name, **row, "exports": exports, "command": started, "model_crc32": model}
  if failures:
    return {**row, "export": "; ".join(failures)}
  kept.parent.mkdir(parents=True, exist_ok=True)
  files.keep(kept, row)
  return row


def _options(figures: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what a file was made with, of its figures."""
  return {key: figures[key] for key in ("format", *workdir.WORDS) if key in figures}


def _kept(path: Path, name: str) -> dict[str, Any]:
  """Returns the figures of this name that an earlier run has kept; {} where there are none, or damaged ones."""
  try:
    found = files.kept(path, "it is made again")
    if found and found.get("name") != name:
      raise UserError(f"{str(path)!r} is damaged: it holds other figures; it is made again")
  except UserError as error:
    print(f"warning: {error}", file=sys.stderr)
    return {}
  return found


def _is_whole(path: Path, figures: Mapping[str, Any]) -> bool:
  """Returns whether a file is there as it was written."""
  return "file_crc32" in figures and files.checksum(path) == figures["file_crc32"]


def _add_latencies(context: Context, rows: Sequence[dict[str, Any]]) -> None:
  """Adds latencies to the rows and their exports, of all files in turns in one benchmark, which is kept.

  A file that fails in it has none, and its row says why.
  """
  folder, kept = context.folder / "files", context.folder / "files" / "latency.json"
  written = {f"{row['name']}{suffix}": row for row in rows for suffix in row.get("exports", {})}
  timed = {name: row["exports"][Path(name).suffix]["file_crc32"] for name, row in written.items()}
  if not timed:
    kept.unlink(missing_ok=True)
    return
  found: dict[str, Any] = _kept(kept, LATENCIES)
  if found.get("files") != timed:
    try:
      figures = latencies({name: str(folder / name) for name in timed}, context.config.latency_runs)
    except UserError as error:
      print(f"warning: no latency was measured: {error}", file=sys.stderr)
      return
    found = {"name": LATENCIES, "files": timed, "latency": figures}
    files.keep(kept, found)
  for name, latency in found["latency"].items():
    row = written[name]
    row["exports"][Path(name).suffix]["latency"] = latency
    if Path(name).suffix == next(iter(row["exports"])):
      row |= {"latency_us": latency["wall_median"], "latency": latency}
