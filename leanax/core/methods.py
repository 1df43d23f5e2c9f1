"""The methods of a package, found by walking it: a method is a file that has a function of its own name."""

import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from leanax.core.errors import unknown


def methods(package: ModuleType) -> dict[str, Callable[..., Any]]:
  """{"hinton": kd.hinton, ...}: the submodules whose name is also that of a function which the package exports."""
  names = (module.name for module in pkgutil.iter_modules(package.__path__))
  found = {name: getattr(package, name, None) for name in names}
  return {name: value for name, value in found.items() if callable(value)}


def method(package: ModuleType, name: str, more: Mapping[str, Any] | None = None) -> Callable[..., Any]:
  """The method called `name`.

  Args:
    package: such as `kd`.
    name: the method's name, which is its file's.
    more: further names that are accepted.

  Raises:
    core.errors.UserError: there is none; the nearest names are given.
  """
  known = {**methods(package), **(more or {})}
  if not isinstance(name, str) or name not in known:
    raise unknown(f"method of {package.__name__}", name, known, "docs/methods.md")
  return known[name]
