"""Tables of the documentation, repeated over seeds: means with 95 % intervals of Student's t, drops paired by seed."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError, unknown
from pipeline import flags
from pipeline.environment import environment
from pipeline.seeds import compress_seeds
from pipeline.tables import percent, size


def interval(values: Sequence[float]) -> tuple[float, float]:
  """(mean, half width) of the 95 % interval of Student's t over independent runs."""
  from scipy import stats

  x = np.asarray(values, np.float64)
  half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
  return float(x.mean()), float(half)


def compression(config: str, title: str, seeds: int, folder: Path) -> dict[str, Any]:
  """The whole job of a config file, once a seed; the data's split is the same in all, everything else differs.

  Returns:
    {"title", "config", "examples"} and what `summary` returns.
  """
  results = compress_seeds(flags.experiment(config, [("seeds", str(seeds))]), folder)
  return {"title": title, "config": config, **summary(results)}


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The runs of several seeds side by side.

  Args:
    results: what `compress` returns, a seed.

  Returns:
    {"examples", "environment", "seeds", "stages": [{"name", "accuracy": [a seed], ...}], "drop": {"values", "mean",
    "half"}, "bytes": {"first", "last", "ratio"}}: drop is from the first stage's exported file to the last one's, on
    the test split, in points.
  """
  stages = [
    {
      "name": row["name"],
      **{
        key: [result["rows"][index].get(key) for result in results]
        for key in ("accuracy", "file_accuracy", "agreement", "nonzero", "file_bytes", "codes_differ")
      },
    }
    for index, row in enumerate(results[0]["rows"])
  ]
  first, last = stages[0], stages[-1]
  drops = [100 * (a - b) for a, b in zip(first["file_accuracy"], last["file_accuracy"], strict=True)]
  mean, half = interval(drops)
  ratio = np.mean(first["file_bytes"]) / np.mean(last["file_bytes"])
  return {
    "examples": results[0]["examples"],
    "environment": environment(),
    "seeds": [result["config"]["seed"] for result in results],
    "stages": stages,
    "drop": {"values": drops, "mean": mean, "half": half},
    "bytes": {"first": first["file_bytes"], "last": last["file_bytes"], "ratio": float(ratio)},
  }


def page(table: dict[str, Any], command: str) -> str:
  """A table as a page of the documentation shows it."""
  return f"## {table['title']}\n\n`{command}`\n\n{markdown(table)}"


def markdown(table: Mapping[str, Any]) -> str:
  """The means over seeds of `summary`."""
  lines = [
    "| stage | JAX model | exported file | agrees with the teacher | non-zero | file |",
    "| --- | --- | --- | --- | --- | --- |",
  ]
  for stage in table["stages"]:
    means = [interval(stage[key]) for key in ("accuracy", "file_accuracy", "agreement")]
    cells = [f"{percent(mean)} ± {100 * half:.2f}" for mean, half in means]
    kept = f"{np.mean(stage['nonzero']):,.0f}"
    lines.append(f"| {' | '.join([stage['name'], *cells, kept, size(np.mean(stage['file_bytes']))])} |")
  drop, count = table["drop"], len(table["seeds"])
  about = table["environment"]
  lines += [
    "",
    f"{count} seeds, {table['examples']} test examples, last epoch, 95 % intervals over the seeds. Paired drop from"
    f" the first to the last file: {drop['mean']:.2f} ± {drop['half']:.2f} points (worst seed"
    f" {max(drop['values']):.2f}); the last file is {table['bytes']['ratio']:.1f} times smaller. Run on"
    f" {about['processor']}, {about['cores']} cores, jax {about['versions']['jax']}.",
  ]
  return "\n".join(lines)


TABLES: dict[str, dict[str, Callable[[int, Path], dict[str, Any]]]] = {
  "digits": {
    "cpu": lambda seeds, folder: compression("configs/digits.py", "Digits, from teacher to int8", seeds, folder)
  },
}


def reproduce(name: str, preset: str, seeds: int, folder: str | Path) -> str:
  """Runs a table, writes table.json and table.md into `folder`, and returns the page.

  Raises:
    UserError: no such table, or none of that preset.
  """
  if name not in TABLES:
    raise unknown("table", name, TABLES)
  if preset not in TABLES[name]:
    raise UserError(f"table {name!r} has no preset {preset!r}; it has {', '.join(TABLES[name])}")
  folder = Path(folder)
  table = TABLES[name][preset](seeds, folder)
  command = f"python -m scripts.reproduce --table={name} --preset={preset} --seeds={seeds} --workdir=runs/table_{name}"
  text = page(table, command)
  (folder / "table.json").write_text(json.dumps({"command": command, **table}, indent=1) + "\n", encoding="utf-8")
  (folder / "table.md").write_text(text + "\n", encoding="utf-8")
  return text
