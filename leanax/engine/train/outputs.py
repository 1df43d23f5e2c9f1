"""Models with several outputs: the one that has the logits."""

from typing import Any

from kd.outputs import is_one
from leanax.core import trees
from leanax.core.errors import UserError, unknown


def every(outputs: Any, where: str) -> Any:
  """Returns all outputs as a dict by name.

  Raises:
    UserError: there is one, an array.
  """
  if is_one(outputs):
    raise UserError(f"{where} has one output, an array; expected a dict of outputs, as labels are of several")
  return trees.named_leaves(outputs)


def only(outputs: Any, name: str, where: str) -> Any:
  """Returns the output that has a model's logits: the named one, or the only one.

  Args:
    outputs: an array, or a tree of them.
    name: which, or "".
    where: the model's name in errors.

  Raises:
    UserError: there are several and none is named, or there is no such output.
  """
  found = trees.named_leaves(outputs)
  if is_one(outputs):
    if name:
      raise UserError(f"{where} has one output, an array; expected no 'output', got {name!r}")
    return outputs
  if not name:
    raise UserError(
      f"{where} has several outputs, {', '.join(map(repr, found))}; expected the one with a logit for each class as "
      "its 'output'"
    )
  if name not in found:
    raise unknown(f"output of {where}", name, found)
  return found[name]
