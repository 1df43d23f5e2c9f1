"""Tables of the documentation, repeated over seeds: means with 95 % intervals of Student's t, paired by seed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leanax.core.errors import UserError, unknown
from leanax.core.files import write
from leanax.pipeline.config import loading
from leanax.pipeline.environment import environment
from leanax.pipeline.seeds import compress_seeds
from leanax.pipeline.tables import measures, students
from leanax.pipeline.tables.tables import ABSENT, interval, over_seeds, size


class Part(NamedTuple):
  """One table of a page.

  Attributes:
    config: a config file, optionally with an argument.
    title: its heading.
    against: of a table of students, the stage that the others are compared with; of a compression, None.
    note: a remark for the reader, after the table.
  """

  config: str
  title: str
  against: str | None = ""
  note: str = ""


SIZES = ("cpu", "paper")
TABLES: dict[str, dict[str, tuple[Part, ...]]] = {
  "digits": {"cpu": (Part("configs/digits.py", "Digits, from teacher to int8", None),)},
  "hinton2015_mnist": {
    size: (
      Part(f"configs/kd_hinton.py:{size}", "Soft targets on MNIST: students with two layers of 800 units", "hard"),
      Part(f"configs/kd_hinton.py:sweep_{size}", "Temperatures for students with two layers of 30 units", "hard"),
    )
    for size in SIZES
  },
  "kd_few_labels": {
    "cpu": (
      Part("configs/kd_few_labels.py:digits", "A hundred labels of the digits", "alone"),
      Part("configs/kd_few_labels.py:mnist", "A hundred labels of MNIST", "alone"),
    ),
    "paper": (Part("configs/kd_few_labels.py:mnist_paper", "A hundred labels of MNIST", "alone"),),
  },
  "kd_methods_fashion": {
    size: (Part(f"configs/kd_fashion.py:{size}", "Every loss, Fashion-MNIST", "hinton"),) for size in SIZES
  },
  "kd_teachers": {
    size: (Part(f"configs/kd_teachers.py:{size}", "Kinds of teachers on Fashion-MNIST", "alone"),) for size in SIZES
  },
  "kd_tuning_fashion": {
    size: (Part(f"configs/kd_fashion.py:tune_{size}", "Weight and temperature of plain distillation", "alone"),)
    for size in SIZES
  },
  "tutorial_mnist": {
    size: (Part(f"configs/kd_tutorial.py:{size}", "A ResNet-18 and two convolutions on MNIST", "alone"),)
    for size in SIZES
  },
  "kd_bits_fashion": {
    size: (Part(f"configs/kd_bits.py:{size}", "Temperature and bit width on Fashion-MNIST", "float"),) for size in SIZES
  },
  "kd_cut": {
    size: (
      Part(f"configs/kd_cut.py:{size}", "A quarter of the channels on Fashion-MNIST", "random_hinton"),
      Part(f"configs/kd_cut.py:layers_{size}", "Half of the blocks on Fashion-MNIST", "random_hinton"),
    )
    for size in SIZES
  },
}


def compression(config: str, title: str, seeds: int, folder: Path) -> dict[str, Any]:
  """Runs the whole job of a config file once per seed; the split of the data is the same, everything else differs.

  Returns:
    {"title", "config"} and what `summary` returns.
  """
  results = compress_seeds(loading.experiment(config, [("seeds", str(seeds))]), folder)
  return {"title": title, "config": config, **summary(results)}


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Puts the runs of several seeds side by side.

  Args:
    results: the results of `compress`, one per seed.

  Returns:
    {"examples", "environment", "seeds", "stages": [{"name", "accuracy": [per seed], ...}], "drop": {"values", "mean",
    "half"}, "bytes": {"first", "last", "ratio"}}: drop is from the first stage's exported file to the last one's, on
    the test split, in points, or in the unit of a metric that is no share. Figures of a seed without a file are None;
    "drop" and "bytes" are then left out where they are of that stage. "metric" is there for another one than accuracy.
  """
  measure = measures.main(results[0])
  name, of_file = measure["name"], f"file_{measure['name']}"
  stages = [
    {
      "name": row["name"],
      **{
        key: [result["rows"][index].get(key) for result in results]
        for key in (name, of_file, "agreement", "nonzero", "file_bytes", "codes_differ")
      },
    }
    for index, row in enumerate(results[0]["rows"])
  ]
  table = {
    "examples": results[0]["examples"],
    "environment": environment(),
    "seeds": [result["config"]["seed"] for result in results],
    "stages": stages,
    **({} if name == measures.ACCURACY["name"] else {"metric": measure}),
  }
  first, last = stages[0], stages[-1]
  if None in (*first[of_file], *last[of_file]):
    return table
  scale = measures.sign(measure) * (100 if measures.is_share(measure) else 1)
  drops = [scale * (a - b) for a, b in zip(first[of_file], last[of_file], strict=True)]
  mean, half = interval(drops)
  ratio = np.mean(first["file_bytes"]) / np.mean(last["file_bytes"])
  return table | {
    "drop": {"values": drops, "mean": mean, "half": half},
    "bytes": {"first": first["file_bytes"], "last": last["file_bytes"], "ratio": float(ratio)},
  }


def markdown(table: Mapping[str, Any]) -> str:
  """Returns the means over seeds of `summary`, as Markdown."""
  measure = table.get("metric", measures.ACCURACY)
  shown = ((measure["name"], measure), (f"file_{measure['name']}", measure), ("agreement", measures.ACCURACY))
  lines = [
    "| stage | JAX model | exported file | agrees with the teacher | non-zero | file |",
    "| --- | --- | --- | --- | --- | --- |",
  ]
  for stage in table["stages"]:
    cells = [over_seeds(stage[key], of) for key, of in shown]
    kept, written = f"{np.mean(stage['nonzero']):,.0f}", stage["file_bytes"]
    bytes_of_file = ABSENT if None in written else size(np.mean(written))
    lines.append(f"| {' | '.join([stage['name'], *cells, kept, bytes_of_file])} |")
  machine, text = table["environment"], ""
  if drop := table.get("drop"):
    form = ".2f" if measures.is_share(measure) else ".3g"
    text = (
      f" Paired drop from the first to the last file: {drop['mean']:{form}} ± {drop['half']:{form}}{_unit(measure)}"
      f" (worst seed {max(drop['values']):{form}}); the last file is {table['bytes']['ratio']:.1f} times smaller."
    )
  lines += [
    "",
    f"{len(table['seeds'])} seeds, {table['examples']} test examples, last epoch, 95 % intervals over the seeds.{text}"
    f" Run on {machine['processor']}, {machine['cores']} cores, jax {machine['versions']['jax']}.",
  ]
  return "\n".join(lines)


def _unit(measure: measures.Measure) -> str:
  if measure["name"] == measures.ACCURACY["name"]:
    return " points"
  return f" points of {measure['title']}" if measures.is_share(measure) else f" {measure['unit']} of {measure['title']}"


def run_part(part: Part, seeds: int, folder: Path) -> tuple[dict[str, Any], str]:
  """Runs one table; returns it as data and as Markdown."""
  if part.against is None:
    table = compression(part.config, part.title, seeds, folder)
    text = markdown(table)
  else:
    table = students.students(part.config, part.title, seeds, folder, part.against)
    text = students.markdown(table)
  return table, f"{text}\n\n{part.note}" if part.note else text


def reproduce(name: str, preset: str, seeds: int, folder: str | Path) -> str:
  """Runs a table, writes table.json and table.md into `folder`, and returns the page.

  Raises:
    UserError: the table or the preset does not exist.
  """
  if name not in TABLES:
    raise unknown("table", name, TABLES)
  if preset not in TABLES[name]:
    raise UserError(f"table {name!r} has no preset {preset!r}; it has {', '.join(TABLES[name])}")
  folder = Path(folder)
  parts = TABLES[name][preset]
  command = f"python -m scripts.reproduce --table={name} --preset={preset} --seeds={seeds} --workdir=runs/table_{name}"
  tables, lines = [], []
  for index, part in enumerate(parts):
    table, text = run_part(part, seeds, folder / f"part{index}" if len(parts) > 1 else folder)
    tables.append(table)
    lines += [f"## {part.title}", "", f"`{command}`", "", text, ""]
  page = "\n".join(lines)
  data = {"command": command, "preset": preset, **(tables[0] if len(tables) == 1 else {"parts": tables})}
  write(folder / "table.json", json.dumps(data, indent=1) + "\n")
  write(folder / "table.md", page)
  return page
