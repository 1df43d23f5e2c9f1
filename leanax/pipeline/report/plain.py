"""The report as Markdown: what report.html says in words and tables, from the same data."""

import os
from collections.abc import Mapping
from typing import Any

from leanax.core import files
from leanax.pipeline.report import parts, shipping
from leanax.pipeline.tables import tables


def write_markdown(path: str | os.PathLike[str], result: Mapping[str, Any]) -> None:
  """Writes the page of `result` (see `report.report`) to `path` atomically."""
  files.write(path, render(result))


def render(result: Mapping[str, Any]) -> str:
  """Returns the page as Markdown."""
  rows, found, examples = result.get("rows") or [], result.get("shipping") or {}, result.get("examples", 0)
  pieces = [f"# {result.get('title', 'A compressed model')}"]
  if found:
    pieces += [shipping.sentence(found, examples), _table(shipping.table(found)), shipping.notes(found)]
    if found.get("snippet"):
      pieces.append(f"To run it:\n\n```python\n{found['snippet']}\n```")
  pieces += ["## Stages", tables.format_markdown(rows)]
  pieces += [f"**{row['name']}** was trained, but not exported: {row['export']}" for row in rows if row.get("export")]
  pieces += ["\n".join(f"- {column.head}: {column.meaning}" for column in tables.used(rows))]
  if lines := parts.class_table(result):
    pieces += ["## Classes", _table(lines), parts.class_note(result)]
  for name, lines in parts.layer_tables(result)[:1]:
    pieces += [f"## Layers of {name}", _table(lines), parts.LAYERS]
  machine = result.get("environment") or {}
  measured = [parts.made(result)] if parts.made(result) else []
  measured += [f"Measured on {examples:,} examples of the test split."] if examples else []
  measured += [f"Run on {machine['processor']}."] if machine.get("processor") else []
  measured += [f"Command: `{result['command']}`"] if result.get("command") else []
  return "\n\n".join(part for part in [*pieces, " ".join(measured)] if part) + "\n"


def _table(lines: list[list[str]]) -> str:
  """Returns rows of cells, the heads first, as a table."""
  rule = ["---", *["---:"] * (len(lines[0]) - 1)]
  cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
  return "\n".join("| " + " | ".join(line) + " |" for line in [cells[0], rule, *cells[1:]])
