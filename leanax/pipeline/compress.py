"""The whole job: the stages of an experiment in order, a row of the table for each, and the report."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from leanax.core import files
from leanax.deploy.formats.litert.flat import schema as schema_of_files
from leanax.pipeline import workdir
from leanax.pipeline.config.experiment import Experiment
from leanax.pipeline.environment import environment, use_compilation_cache
from leanax.pipeline.job import Context
from leanax.pipeline.report.measure import measure
from leanax.pipeline.report.report import write_report
from leanax.pipeline.stage import curves, opened, run_stage
from leanax.pipeline.trained import Trained


def compress(config: Experiment, folder: str | Path) -> dict[str, Any]:
  """Runs every stage of `config.run` that is not finished yet, and writes result.json and report.html.

  Args:
    config: an experiment (`pipeline.config`).
    folder: the run's directory; a finished stage is read from it, an unfinished one resumes at its last checkpoint.

  Returns:
    The content of result.json; see `pipeline.report.report`.
  """
  schema_of_files()  # a missing LiteRT schema is found before hours of training
  context = open_run(config, folder)
  resolved = workdir.resolved(config)
  done: dict[str, Trained] = {}
  rows: list[dict[str, Any]] = []
  result: dict[str, Any] = {}
  for name in config.run:
    done[name] = run_stage(name, context, done)
    rows.append(_row(name, context, done[name], rows))
    result = {
      "title": config.name or "A compressed network",
      "command": " ".join(["python -m scripts.compress", *sys.argv[1:]]),
      "examples": len(context.data.test.labels),
      "config": resolved,
      "environment": environment(),
      "rows": [{key: value for key, value in row.items() if key != "decisions"} for row in rows],
      "curves": {stage: curves(stage, context) for stage in done},
    }
    files.write(context.folder / "result.json", json.dumps(result, indent=1) + "\n")
    write_report(context.folder / "report.html", result)
  return result


def open_run(config: Experiment, folder: str | Path) -> Context:
  """Loads an experiment's data, prepares all of its stages, and claims `folder` for it; nothing is compiled yet.

  Raises:
    UserError: a mistake in the config, a directory of another config, data that is not there.
  """
  context = opened(config, Path(folder))
  workdir.claim(folder, config)  # last, so that a config with a mistake does not claim the directory
  use_compilation_cache()
  return context


def _row(name: str, context: Context, trained: Trained, rows: list[dict[str, Any]]) -> dict[str, Any]:
  """Returns the stage's row, measured once and saved next to its file."""
  kept = context.folder / "files" / f"{name}.json"
  if kept.is_file():
    return json.loads(kept.read_text(encoding="utf-8"))
  reference = np.array(rows[0]["decisions"]) if rows else None
  row = measure(
    trained, context.data.test, context.folder / "files" / f"{name}.tflite", reference, context.config.latency_runs
  )
  row = {"name": name, **row}
  files.write(kept, json.dumps(row, indent=1) + "\n")
  return row
