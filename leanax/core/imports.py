"""A user's own code by import path, "package.module:name", and the line in which it fails."""

import contextlib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leanax.core.errors import UserError, unknown

OURS = tuple(str(Path(__file__).parents[2] / name) + os.sep for name in ("leanax", "kd", "quant", "sparsity"))
INSTALLED = ("site-packages", "dist-packages", str(Path(os.__file__).parent), "<")


def is_path(name: Any) -> bool:
  """Returns whether a name is an import path, "package.module:name", and neither a method's nor that of a data set."""
  return isinstance(name, str) and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


def found(spec: str, where: str, module: str = "") -> Any:
  """Imports the object at "package.module:name".

  Args:
    spec: the import path, as a user wrote it.
    where: names it in errors, such as "model 'my.nets:Net'".
    module: the module that is imported, where it is not the one that is written.

  Raises:
    UserError: it is no import path, the module or the name does not exist, or importing the module fails.
  """
  given, colon, name = spec.partition(":") if isinstance(spec, str) else ("", "", "")
  if not (colon and given and name):
    raise UserError(f"{where} is no import path; expected 'package.module:Name'")
  module = module or given
  try:
    loaded = importlib.import_module(module)
  except ModuleNotFoundError as error:
    if error.name and (module + ".").startswith(error.name + "."):
      raise UserError(
        f"{where}: there is no module {error.name!r} on the Python path{_searched(error.name, spec)}"
      ) from error
    raise UserError(f"{where}: module {module!r} needs {error.name!r}, which is not installed") from error
  except (ImportError, SyntaxError) as error:
    raise UserError(f"{where}: importing {module!r} failed: {error}") from error
  except Exception as error:  # the user's code may raise anything
    raise UserError(f"{where}: importing {module!r} failed: {failure(error)}") from error
  if not hasattr(loaded, name):
    choices = [n for n, value in vars(loaded).items() if callable(value) and not n.startswith("_")]
    raise unknown(f"name in module {given!r}", name, choices or ["(nothing callable)"])
  return getattr(loaded, name)


def _searched(missing: str, spec: str) -> str:
  """Returns where a module is expected; "" inside of a package that is there."""
  if missing.rpartition(".")[0] in sys.modules or not spec.startswith(missing):
    return ""
  started = Path.cwd()
  here = f"in {started}, where the program runs, or " if {"", str(started)} & {*sys.path} else ""
  module = missing.partition(".")[0]
  return f"; expected {module}.py, or a folder of that name, {here}in a folder that PYTHONPATH names"


@contextlib.contextmanager
def failing(what: str) -> Iterator[None]:
  """Turns what a user's code raises within into one sentence that names `what` and the user's line; UserErrors pass."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # the user's code may raise anything
    raise UserError(f"{what} fails: {failure(error)}") from error


def failure(error: Exception) -> str:
  """Returns what a user's code raised, in a sentence, with the line of `line_of`; of a UserError the sentence alone."""
  kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
  return f"{kind}{first_line(error)}{line_of(error)}"


def first_line(error: Exception) -> str:
  """Returns the first line of an error's text."""
  return (str(error).strip() or "no reason given").splitlines()[0]


def line_of(error: Exception) -> str:
  """Returns the innermost line of the user's code as " (file:line)"; "" where there is none.

  Without one it is ours, except that of a UserError, which says what the user did.
  """
  frames = traceback.extract_tb(error.__traceback__)
  found = [frame for frame in frames if not any(part in frame.filename for part in INSTALLED)]
  own = [frame for frame in found if not frame.filename.startswith(OURS)]
  own = own or ([] if isinstance(error, UserError) else found)
  return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
