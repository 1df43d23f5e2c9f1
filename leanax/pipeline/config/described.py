"""The keys of a config in words, for `--help`: types and defaults are the fields of `experiment`, words its comments.

A comment is read where it stands, behind a field or above it, so that nothing is said twice. This module imports no
jax.
"""

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from typing import Any

from leanax.pipeline.config import experiment
from leanax.pipeline.config.experiment import Experiment

WIDTH = 100
LEFT = 38  # of the column of keys, types and defaults


def text() -> str:
  """Returns every key with its type, its default and its comment, by groups, at most `WIDTH` columns wide."""
  words = comments(inspect.getsource(experiment))
  return "\n".join(line for where, group in _groups(Experiment, "") for line in _group(where, group, words))


def comments(source: str) -> dict[tuple[str, str], str]:
  """Returns what the comments of a file say of the fields of its classes, by (class, field): above, then behind."""
  tokens = tokenize.generate_tokens(io.StringIO(source).readline)
  found = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
  alone = {line for line, token in found.items() if token.line.lstrip().startswith("#")}
  said: dict[tuple[str, str], str] = {}
  for owner in (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)):
    for field in owner.body:
      if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
        continue
      first = field.lineno
      while first - 1 in alone:
        first -= 1
      lines = range(first, (field.end_lineno or field.lineno) + 1)
      said[owner.name, field.target.id] = " ".join(found[n].string.lstrip("# ") for n in lines if n in found)
  return said


def fill(line: str, indent: str = "") -> str:
  """Returns a line broken at `WIDTH` columns, its further lines behind `indent`."""
  return textwrap.fill(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _groups(group: Any, where: str) -> Iterator[tuple[str, Any]]:
  """Yields the dotted key and the dataclass of a group and of all groups in it."""
  yield where, group
  for field in dataclasses.fields(group):
    key = f"{where}.{_key(field)}".lstrip(".")
    if inner := field.metadata.get("entries"):
      yield from _groups(inner, f"{key}.NAME")
    elif dataclasses.is_dataclass(field.default):
      yield from _groups(type(field.default), key)


def _group(where: str, group: Any, words: dict[tuple[str, str], str]) -> Iterator[str]:
  """Yields the lines of a group: its key with its docstring, and a row of each key that is no group of its own."""
  title = " ".join((group.__doc__ or "").split())
  yield from ["", fill(f"{where}: {title}" if where else title, "  ")]
  for field in dataclasses.fields(group):
    if "entries" not in field.metadata and not dataclasses.is_dataclass(field.default):
      yield from _row(field, words[group.__name__, field.name])


def _row(field: Any, words: str) -> list[str]:
  more = field.metadata
  kind, default = str(getattr(field.type, "__name__", field.type)), field.default
  if more.get("free"):
    kind, default = "group", more["default"] or {}
  elif not isinstance(field.type, type) or kind == "tuple":
    kind = str(field.type).replace("typing.", "")
  choices = [f"one of {', '.join(map(repr, more['choices']))}"] if more.get("choices") else []
  numbers = [more["range"].words] if more.get("range") else []
  said = "; ".join(part for part in (words.removesuffix("."), *choices, *numbers) if part)
  left = f"  {_key(field)}: {kind} = {default!r}"
  right = textwrap.wrap(said, WIDTH - LEFT - 2, break_long_words=False, break_on_hyphens=False)
  if len(left) > LEFT:
    right.insert(0, "")
  lines = [f"{left.ljust(LEFT)}  {right[0] if right else ''}", *(" " * (LEFT + 2) + line for line in right[1:])]
  return [line.rstrip() for line in lines]


def _key(field: Any) -> str:
  return field.metadata.get("key") or field.name
