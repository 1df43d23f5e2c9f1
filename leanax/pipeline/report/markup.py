"""Pieces of a page in HTML, made of texts that are escaped here."""

from collections.abc import Mapping, Sequence
from html import escape


def table(lines: Sequence[Sequence[str]], css: str = "", chosen: str | None = None) -> str:
  """Returns rows of text cells, the heads first, as a table that scrolls by itself where it is too wide.

  Args:
    lines: the rows.
    css: its class.
    chosen: the first cell of the row that is marked.
  """
  head = "".join(f'<th scope="col">{escape(text)}</th>' for text in lines[0])
  body = []
  for name, *cells in lines[1:]:
    mark = ' class="chosen"' if name == chosen else ""
    head_cell = escape(name).replace("/", "/<wbr>")  # a path may be broken there
    body.append(f'<tr{mark}><th scope="row">{head_cell}</th>{"".join(f"<td>{escape(c)}</td>" for c in cells)}</tr>')
  return scroll(f'<table class="{css}"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>')


def scroll(inside: str) -> str:
  """Returns a box that scrolls sideways, and shows that it does."""
  return f'<div class="scroll" tabindex="0">{inside}</div>'


def matrix(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[int]]], corner: str) -> str:
  """Returns counts as a table, its cells shaded by their share of the row, and the diagonal in a colour of its own."""
  head = "".join(f'<th scope="col">{escape(text)}</th>' for text in (corner, *heads))
  body = []
  for place, (name, counts) in enumerate(rows):
    cells = []
    for column, number in enumerate(counts):
      share = number / max(sum(counts), 1)
      kind = "right" if column == place else "wrong"
      cells.append(f'<td class="{kind}" style="--share:{share:.3f}">{number}</td>' if number else "<td></td>")
    body.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
  return scroll(f'<table class="matrix"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>')


def details(summary: str, inside: str, opened: bool = False) -> str:
  """Returns a part that is folded until its summary is chosen."""
  return f"<details{' open' * opened}><summary>{escape(summary)}</summary>{inside}</details>"


def section(title: str, words: str, *inside: str) -> str:
  """Returns a part of the page under a heading; "" where there is nothing inside."""
  if not any(inside):
    return ""
  return f"<section><h2>{escape(title)}</h2>{note(words)}{''.join(inside)}</section>"


def note(text: str) -> str:
  """Returns a paragraph of small type; "" without a text."""
  return f'<p class="note">{escape(text)}</p>' if text else ""


def definitions(entries: Mapping[str, str]) -> str:
  """Returns names and their texts side by side."""
  inside = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in entries.items())
  return f"<dl>{inside}</dl>"
