"""Files of any format: the format is found by its name or by the suffix of a file."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leanax.core.errors import UserError, unknown
from leanax.core.methods import methods
from leanax.core.texts import elements
from leanax.deploy import formats
from leanax.deploy.formats import Format, Runner

_TEXT = re.compile(r"\.?(?P<name>\w+)(?:\((?P<options>.*)\))?")


def file_formats() -> dict[str, Format]:
  """Returns all formats, by the suffix of their files: {".tflite": ...}."""
  found = [method() for method in methods(formats).values()]
  return {format.suffix: format for format in found}


def file_format(name: str, **options: Any) -> Format:
  """Returns the format of a name ("litert") or of a suffix ("tflite", ".tflite"), with options.

  Args:
    name: may have options in parentheses, as in "litert(weights=float16)" and "stablehlo(platforms=(cpu, cuda))".
    **options: further ones.

  Raises:
    UserError: there is none, or it has no such option, of which the known ones are named; or an option is given twice.
  """
  found = _TEXT.fullmatch(name)
  method = _method(found["name"] if found else name)
  try:
    pairs = [pair.partition("=") for pair in elements((found and found["options"]) or "")]
  except ValueError:
    raise UserError(
      f"the file format {name!r} has parentheses without a counterpart; expected a text such as "
      "'litert(weights=float16)' or 'stablehlo(platforms=(cpu, cuda))'"
    ) from None
  names = [key.strip() for key, _, _ in pairs] + [*options]
  twice = [key for key in names if names.count(key) > 1]
  if twice:
    raise UserError(f"the option {twice[0]!r} of the file format {name!r} is given twice; expected once")
  given = {key.strip(): _value(value.strip()) for key, _, value in pairs} | options
  known = inspect.signature(method).parameters
  for key in given:
    if key not in known:
      raise unknown(f"option of the file format {name!r}:", key, known)
  return method(**given)


def _method(name: str) -> Callable[..., Format]:
  by_name = methods(formats)
  by_suffix = {method().suffix.removeprefix("."): method for method in by_name.values()}
  if name not in by_name and name not in by_suffix:
    suffixes = {key: method().suffix for key, method in sorted(by_name.items())}
    known = ", ".join(f"{suffix.removeprefix('.')} ({key})" for key, suffix in suffixes.items())
    raise UserError(f"unknown file format {name!r}; expected one of {known}")
  return by_name.get(name) or by_suffix[name]


def _value(text: str) -> Any:
  if text[:1] in ("(", "[") and text[-1:] in (")", "]"):
    return tuple(map(_value, elements(text[1:-1])))
  try:
    return float(text)
  except ValueError:
    return text


def format_of(path: str | Path, name: str = "", **options: Any) -> Format:
  """Returns the format of a file, by the suffix of its name.

  Args:
    path: the file.
    name: of the format that it has to be, as of `file_format`; "" for any.
    **options: of the format.

  Raises:
    UserError: no format has that suffix, or not the one that is named; the known ones are named.
  """
  if not name and Path(path).suffix not in file_formats():
    known = ", ".join(sorted(file_formats()))
    raise UserError(f"{str(path)!r} has the suffix of no file format; expected one of {known}")
  found = file_format(name or Path(path).suffix, **options)
  if Path(path).suffix != found.suffix:
    raise UserError(
      f"{str(path)!r} has not the suffix of the format {name!r}; expected a name that ends in {found.suffix}"
    )
  return found


def open_file(path: str | Path, threads: int = 1) -> Runner:
  """Returns a file in its runtime, chosen by the file's suffix.

  Raises:
    UserError: an unknown suffix, no such file, or a damaged one.
  """
  return format_of(path).open(path, threads)
