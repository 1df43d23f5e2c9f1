"""The methods of sparsity that a stage may name, and which of their keywords are methods themselves."""

import inspect
from collections.abc import Callable
from typing import Any

import optax

import sparsity
from leanax.core.errors import unknown
from leanax.core.methods import methods

PARTS = {
  "score": sparsity.criteria,
  "drop": sparsity.criteria,
  "grow": sparsity.criteria,
  "pattern": sparsity.patterns,
}


def method(name: Any) -> Callable[..., Any]:
  """Returns the method that wraps an optimizer; its kind is what it returns.

  Raises:
    UserError: there is none of this name.
  """
  found = methods(sparsity) | methods(sparsity, "dynamic")
  kind = optax.GradientTransformationExtraArgs
  wraps = {key: fn for key, fn in found.items() if inspect.signature(fn).return_annotation is kind}
  if not isinstance(name, str) or name not in wraps:
    raise unknown("method of sparsity", name, wraps, "docs/methods.md")
  return wraps[name]
