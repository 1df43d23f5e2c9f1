"""Edits as data: a function that is traced again at each call and evaluated with parts replaced.

An edit is a dict that JSON can hold; names in it are those after the edits before it. The original function is traced
at the caller's batch size and at the original shapes of the variables, so a model's hard-coded widths do not matter;
what the edits leave without a reader is dropped.
"""

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from leanax.core.errors import UserError, unknown
from leanax.graph.edits import KINDS
from leanax.graph.edits.kind import Edit
from leanax.graph.shapes import Shapes, structs


class Run(NamedTuple):
  """Edits of one kind that are applied in one trace."""

  kind: ModuleType
  edits: list[Edit]


def edit(fn: Callable[..., Any], edits: Sequence[Edit], original: Shapes | Any) -> Callable[..., Any]:
  """Returns the edited function: `fn2(variables, *inputs) -> out` of the edited variables.

  Args:
    fn: the original function of the original variables.
    edits: what to change, in order, as a `Net` holds it.
    original: the original variables, or their shapes in the same containers, or `shapes(variables)`, which is data.

  Raises:
    UserError: an unknown edit; or, when it is called, a function that is not the one the edits were made for.
  """
  found, whole = runs(edits), structs(original)

  def edited(variables: Any, *inputs: Any) -> Any:
    changed, shapes = fn, whole
    for place, (kind, each) in enumerate(found):
      before, changed = changed, kind.apply(changed, each, shapes)
      if place + 1 < len(found):
        shapes = kind.after(before, each, shapes, inputs)
    return changed(variables, *inputs)

  return edited


def runs(edits: Sequence[Edit], kinds: Mapping[str, ModuleType] = KINDS) -> list[Run]:
  """Returns the edits, those of one kind that can be applied in one trace together; `kinds` are all that there are.

  Raises:
    UserError: they are no edits, or one comes after an edit that is the last of a net, such as "quantize".
  """
  if not isinstance(edits, Sequence) or not all(isinstance(one, Mapping) for one in edits):
    raise UserError(f"the edits are {edits!r}; expected a list of dicts, as a Net holds them")
  found: list[Run] = []
  for one in edits:
    kind = kinds.get(str(one.get("edit")))
    if kind is None:
      raise unknown("edit", str(one.get("edit")), kinds)
    if found and hasattr(found[-1].kind, "LAST"):
      raise UserError(f"the edit {one['edit']!r} comes after {found[-1].edits[0]['edit']!r}; {found[-1].kind.LAST}")
    if found and found[-1].kind is kind and kind.joins(found[-1].edits, one):
      found[-1].edits.append(one)
    else:
      found.append(Run(kind, [one]))
  return found
