"""Files of any format: the format is found by its name or by the suffix of a file."""

from pathlib import Path

from leanax.core.errors import UserError
from leanax.core.methods import methods
from leanax.deploy import formats
from leanax.deploy.formats import Format, Runner


def file_formats() -> dict[str, Format]:
  """Returns all formats, by the suffix of their files: {".tflite": ...}."""
  found = [method() for method in methods(formats).values()]
  return {format.suffix: format for format in found}


def file_format(name: str) -> Format:
  """Returns the format of a name ("litert") or of a suffix ("tflite", ".tflite").

  Raises:
    UserError: there is none; the known ones are named.
  """
  by_name, by_suffix = methods(formats), file_formats()
  found = by_name[name]() if name in by_name else by_suffix.get(f".{name.removeprefix('.')}")
  if found is None:
    suffixes = {key: method().suffix for key, method in sorted(by_name.items())}
    known = ", ".join(f"{suffix.removeprefix('.')} ({key})" for key, suffix in suffixes.items())
    raise UserError(f"unknown file format {name!r}; expected one of {known}")
  return found


def format_of(path: str | Path, name: str = "") -> Format:
  """Returns the format of a file, by the suffix of its name.

  Args:
    path: the file.
    name: of the format that it has to be, as of `file_format`; "" for any.

  Raises:
    UserError: no format has that suffix, or not the one that is named; the known ones are named.
  """
  if name and Path(path).suffix != (found := file_format(name)).suffix:
    raise UserError(
      f"{str(path)!r} has not the suffix of the format {name!r}; expected a name that ends in {found.suffix}"
    )
  known = file_formats()
  if Path(path).suffix not in known:
    raise UserError(f"{str(path)!r} has the suffix of no file format; expected one of {', '.join(sorted(known))}")
  return known[Path(path).suffix]


def open_file(path: str | Path, threads: int = 1) -> Runner:
  """Returns a file in its runtime, chosen by the file's suffix.

  Raises:
    UserError: an unknown suffix, no such file, or a damaged one.
  """
  return format_of(path).open(path, threads)
