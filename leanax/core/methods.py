"""The methods of a package, found by walking it: a method is a file that has a function of its own name."""

import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from leanax.core.errors import unknown


def methods(package: ModuleType, folder: str = "") -> dict[str, Callable[..., Any]]:
  """Returns {"hinton": kd.hinton, ...}: the files whose name is also that of a function which the package exports.

  Args:
    package: such as `kd`.
    folder: the one of its folders that holds them, such as "losses"; "" for the package itself.
  """
  names = (module.name for module in pkgutil.iter_modules([f"{path}/{folder}" for path in package.__path__]))
  found = {name: getattr(package, name, None) for name in names}
  return {name: value for name, value in found.items() if callable(value)}


def method(
  package: ModuleType, name: str, more: Mapping[str, Any] | None = None, folder: str = ""
) -> Callable[..., Any]:
  """Returns the method called `name`.

  Args:
    package: such as `kd`.
    name: the method's name, which is its file's.
    more: further names that are accepted.
    folder: as of `methods`.

  Raises:
    core.errors.UserError: there is no such method; the nearest names are given.
  """
  known = {**methods(package, folder), **(more or {})}
  if not isinstance(name, str) or name not in known:
    raise unknown(f"method of {package.__name__}", name, known, "docs/methods.md")
  return known[name]
