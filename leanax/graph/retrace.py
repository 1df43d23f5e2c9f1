"""A function traced at the shapes of other variables than those it is called with, as an edited function is."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from leanax.core.errors import UserError
from leanax.graph.program import Missing, leaf_name, read
from leanax.graph.shapes import leaves_by_name
from leanax.graph.sites import Analysis

STATE = "<state>"  # the key under which a function in training mode returns its new state, by the leaves' names


class Retraced(NamedTuple):
  """A function before an edit.

  Attributes:
    analysis: of its program.
    given: the leaves of the edited variables by name.
    values: of the program's inputs: the edited variables' leaves, `Missing` where there is none, and the inputs.
  """

  analysis: Analysis
  given: Mapping[str, Any]
  values: list[Any]

  def output(self, leaves: list[Any]) -> Any:
    """Returns the function's output of these leaves; new state of leaves that an edit has removed is left out.

    Raises:
      UserError: the function returns a leaf that was removed.
    """
    program = self.analysis.program
    updates = [self.updated(name) for name in program.out_names]
    for leaf, updated in zip(leaves, updates, strict=True):
      if isinstance(leaf, Missing) and (updated is None or updated in self.given):
        raise UserError(f"{leaf.leaf!r} was removed by an edit, but the function returns it")
    tree = jax.tree.unflatten(program.out_tree, [None if isinstance(leaf, Missing) else leaf for leaf in leaves])
    if not any(updates):
      return tree
    out, state = tree
    return out, {STATE: {name: leaf for name, leaf in state[STATE].items() if name in self.given}}

  @property
  def training(self) -> bool:
    """Returns whether the function is one in training mode, which returns `(out, {STATE: new state})`."""
    return any(self.updated(name) for name in self.analysis.program.out_names)

  @property
  def wanted(self) -> list[Any]:
    """The outputs that are left: all but the new state of leaves that an edit has removed."""
    program = self.analysis.program
    updates = zip(program.body.outputs, map(self.updated, program.out_names), strict=True)
    return [ref for ref, updated in updates if updated is None or updated in self.given]

  def updated(self, name: str) -> str | None:
    """Returns the leaf of the variables that an output of a function in training mode is the new state of."""
    prefix = f"1/{STATE}/"
    return name.removeprefix(prefix) if name.startswith(prefix) else None


def retrace(fn: Callable[..., Any], shapes: Any, variables: Any, inputs: tuple[Any, ...]) -> Retraced:
  """Traces `fn` at these shapes and these inputs, for variables that an edit has changed.

  Args:
    fn: `fn(variables, *inputs) -> out`.
    shapes: of its own variables; a leaf of a name that the edited ones have takes their type, for a caller may cast.
    variables: the edited ones.
    inputs: of the call.
  """
  given = leaves_by_name(variables)

  def cast(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
    dtype = getattr(given.get(leaf_name(path)), "dtype", leaf.dtype)
    return leaf if dtype == leaf.dtype else jax.ShapeDtypeStruct(leaf.shape, dtype)

  analysis = Analysis(read(fn, jax.tree_util.tree_map_with_path(cast, shapes), *inputs))
  values = [given.get(name, Missing(name)) for name in analysis.program.leaves]
  return Retraced(analysis, given, values + jax.tree.leaves(inputs))
