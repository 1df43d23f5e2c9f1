"""The report as Markdown: what report.html says in words and tables, from the same data."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from leanax.core import files
from leanax.pipeline import patience
from leanax.pipeline.report import parts, shipping
from leanax.pipeline.tables import measures, tables


def write_markdown(path: str | os.PathLike[str], result: Mapping[str, Any]) -> None:
  """Writes the page of `result` (see `report.report`) to `path` atomically."""
  files.write(path, render(result))


def render(result: Mapping[str, Any]) -> str:
  """Returns the page as Markdown."""
  rows, found, examples = result.get("rows") or [], result.get("shipping") or {}, result.get("examples", 0)
  pieces = [f"# {result.get('title', 'A compressed model')}"]
  if found:
    pieces += [shipping.sentence(found, examples), table(shipping.table(found)), shipping.notes(found)]
    pieces.append(program(found.get("snippet", "")))
  pieces += ["## Stages", tables.format_markdown(rows, measures.of(result))]
  pieces += failures(rows)
  pieces += ["\n".join(f"- {column.head}: {column.meaning}" for column in tables.used(rows, measures.of(result)))]
  measured = f"Measured on {examples:,} examples of the test split." if examples else ""
  return joined([*pieces, *common(result), " ".join([measured, origin(result)]).strip()])


def joined(pieces: Sequence[str]) -> str:
  """Returns what there is of some pieces as one text."""
  return "\n\n".join(piece for piece in pieces if piece) + "\n"


def failures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns a line for each stage that lacks a file: why; and one for each stage with patience: how it ended."""
  failed = [f"**{row['name']}** was trained, but not exported: {row['export']}" for row in rows if row.get("export")]
  return failed + [f"**{row['name']}** {patience.sentence(row['ended'])}" for row in rows if row.get("ended")]


def program(text: str) -> str:
  """Returns the lines that run a file."""
  return f"To run it:\n\n```python\n{text}\n```" if text else ""


def common(result: Mapping[str, Any]) -> list[str]:
  """Returns the classes, and the layers of the recommended file."""
  pieces = []
  if lines := parts.class_table(result):
    pieces += ["## Classes", table(lines), parts.class_note(result)]
  for name, lines, notes in parts.layer_tables(result)[:1]:
    pieces += [f"## Layers of {name}", table(lines), *notes, parts.LAYERS]
  return pieces


def origin(result: Mapping[str, Any]) -> str:
  """Returns when, where and by which command a report was made."""
  machine = result.get("environment") or {}
  words = [parts.made(result), f"Run on {machine['processor']}." if machine.get("processor") else ""]
  words += [f"Command: `{result['command']}`" if result.get("command") else ""]
  return " ".join(word for word in words if word)


def table(lines: list[list[str]]) -> str:
  """Returns rows of cells, the heads first, as a table."""
  rule = ["---", *["---:"] * (len(lines[0]) - 1)]
  cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
  return "\n".join("| " + " | ".join(line) + " |" for line in [cells[0], rule, *cells[1:]])
