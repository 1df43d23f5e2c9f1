"""The directory of a run belongs to one config: config.json holds its values, and no other config may go on in it."""

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from core.errors import UserError
from pipeline.config import leaves

SAVED = "config.json"


def resolved(config: Any) -> dict[str, Any]:
  """All values as plain JSON data (tuples become lists).

  Raises:
    UserError: a value that JSON cannot hold, such as a function or a nan; its key is named.
  """
  return _plain(config, "")


def _plain(value: Any, key: str) -> Any:
  if isinstance(value, Mapping | ml_collections.ConfigDict):
    return {str(name): _plain(value[name], f"{key}.{name}".lstrip(".")) for name in value}
  if isinstance(value, list | tuple):
    return [_plain(element, f"{key}.{index}") for index, element in enumerate(value)]
  if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
    return value
  raise UserError(
    f"config key {key!r} must be a plain value (number, text, true, false, none, or a tuple of such), got {value!r}"
  )


def fingerprint(config: Any) -> str:
  """Sixteen hexadecimal digits that are equal for equal resolved configs."""
  return hashlib.sha256(json.dumps(resolved(config), sort_keys=True).encode()).hexdigest()[:16]


def claim(workdir: str | os.PathLike[str], config: Any) -> dict[str, Any]:
  """Makes `workdir` the home of this config: writes config.json into it, or compares with the one that is there.

  Returns:
    The resolved config.

  Raises:
    UserError: the directory holds a run of another config (the first key that differs is named), or cannot be made.
  """
  folder = pathlib.Path(workdir)
  mine = resolved(config)
  file = folder / SAVED
  if not file.exists():
    try:
      folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise UserError(f"workdir {str(folder)!r} cannot be written: {error.strerror}") from error
    write(file, json.dumps(mine, indent=2) + "\n")
    return mine
  try:
    saved = json.loads(file.read_text(encoding="utf-8"))
  except ValueError:
    raise UserError(f"{str(file)!r} is not JSON; was it changed by hand? Use another --workdir") from None
  if saved != mine:
    raise UserError(
      f"workdir {str(folder)!r} holds a run of another config: {_difference(saved, mine)}; use another --workdir"
    )
  return mine


def write(path: str | os.PathLike[str], content: str | bytes) -> None:
  """Writes a file, wholly or not at all.

  Raises:
    UserError: it cannot be written.
  """
  path = pathlib.Path(path)
  partial = path.with_name(path.name + ".partial")
  try:
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)
  except OSError as error:
    raise UserError(f"{str(path)!r} cannot be written: {error.strerror}") from error


def _difference(saved: Any, mine: Any) -> str:
  there, here = dict(leaves(saved)), dict(leaves(mine))
  for key in {**there, **here}:
    if key not in there or key not in here:
      return f"{key} is only {'there' if key in there else 'in yours'}"
    if there[key] != here[key]:
      return f"{key} is {there[key]!r} there and {here[key]!r} in yours"
  return "their groups differ"
