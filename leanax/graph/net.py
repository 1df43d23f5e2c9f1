"""A network as an original function, a list of edits, and variables."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import jax

from leanax.graph.edit import Run, runs
from leanax.graph.edits import KINDS
from leanax.graph.edits.kind import Edit
from leanax.graph.program import check_arrays, check_function, leaf_name
from leanax.graph.retrace import STATE
from leanax.graph.shapes import leaves_by_name, struct, structs


@dataclass(frozen=True, eq=False)
class Net:
  """A network as an original function, a list of edits, and variables.

  Attributes:
    fn: `fn(variables, *inputs, train=False, key=None) -> (out, state)` of the original variables; `state` is the
      variables without "params", updated where `train` is true.
    variables: of the edited function.
    example: inputs, or their shapes; a batch of one is enough.
    original: the shapes of the original variables.
    edits: changes of the function, in order; plain data (`graph.edit`).
    kinds: the kinds of edits by their names, those of other packages too (`quant.edit`).
  """

  fn: Callable[..., tuple[Any, Any]] = field(repr=False)
  variables: Any = field(repr=False)
  example: tuple[Any, ...] = field(repr=False)
  original: Any = field(repr=False)
  edits: tuple[Edit, ...] = ()
  kinds: Mapping[str, ModuleType] = field(default_factory=lambda: KINDS, repr=False)

  def apply(self, variables: Any, *inputs: Any, train: bool = False, key: Any = None) -> tuple[Any, Any]:
    """Returns `(out, state)`, of any batch size.

    Args:
      variables: as `Net.variables`.
      *inputs: as `Net.example`.
      train: in training mode: with dropout, and batch statistics where a batch norm is left.
      key: of every random stream; needed in training mode only.

    Returns:
      The function's output, any tree, and `variables` without "params", with new batch statistics in training mode.

    Raises:
      UserError: the variables are not those of the edits, or training mode has what an edit cannot change.
    """
    if not train:
      return self.infer(variables, *inputs), collections_of(variables)
    if not self.edits:
      return self.fn(variables, *inputs, train=True, key=key)

    def training(variables: Any, *inputs: Any) -> tuple[Any, Any]:
      out, state = self.fn(variables, *inputs, train=True, key=key)
      return out, {STATE: leaves_by_name(state)}

    out, state = self._edited(training, key)(variables, *inputs)
    flat = state[STATE]
    after = jax.tree_util.tree_map_with_path(
      lambda path, leaf: flat.get(leaf_name(path), leaf), collections_of(variables)
    )
    return out, after

  def infer(self, variables: Any, *inputs: Any) -> Any:
    """Returns the output in evaluation mode."""
    return self._edited(self._evaluated)(variables, *inputs)

  def edited(self, edits: Sequence[Edit], variables: Any, kinds: Mapping[str, ModuleType] | None = None) -> "Net":
    """Returns the net with further edits, perhaps of further kinds, and with the variables after them."""
    found = replace(self, edits=(*self.edits, *edits), variables=variables, kinds={**self.kinds, **(kinds or {})})
    runs(found.edits, found.kinds)
    return found

  def _evaluated(self, variables: Any, *inputs: Any) -> Any:
    return self.fn(variables, *inputs, train=False, key=None)[0]

  def _edited(self, fn: Callable[..., Any], key: Any = None) -> Callable[..., Any]:
    for (kind, each), shapes in zip(runs(self.edits, self.kinds), self._shapes, strict=True):
      fn = kind.apply(fn, each, shapes, **({"key": key} if hasattr(kind, "RANDOM") else {}))
    return fn

  @functools.cached_property
  def _shapes(self) -> list[Any]:
    """Those of the variables before each run of edits."""
    return shapes_before(self._evaluated, runs(self.edits, self.kinds), self.original, *self.example)


def shapes_before(fn: Callable[..., Any], each: Sequence[Run], original: Any, *example: Any) -> list[Any]:
  """Returns the shapes of the variables before each run of edits; the numbers of the example do not matter."""
  found: list[Any] = []
  shapes = structs(original)
  for place, (kind, some) in enumerate(each):
    found.append(shapes)
    if place + 1 < len(each):
      shapes, fn = kind.after(fn, some, shapes, example), kind.apply(fn, some, shapes)
  return found


def collections_of(variables: Any) -> Any:
  """Returns the variables without "params"; nothing where they are not so divided."""
  if not isinstance(variables, Mapping) or "params" not in variables:
    return {}
  return {name: tree for name, tree in variables.items() if name != "params"}


def net(fn: Callable[..., Any], variables: Any, *example: Any) -> Net:
  """Returns the net of a plain function, which has no training mode of its own and no state.

  Args:
    fn: `fn(variables, *inputs) -> out`; `out` may be any tree.
    variables: a tree of arrays, in any containers.
    *example: inputs, or their shapes.
  """
  check_function(fn)

  def plain(variables: Any, *inputs: Any, train: bool = False, key: Any = None) -> tuple[Any, Any]:
    del train, key
    return fn(variables, *inputs), collections_of(variables)

  return net_of(plain, variables, *example)


def net_of(fn: Callable[..., tuple[Any, Any]], variables: Any, *example: Any) -> Net:
  """Returns the net of a function `fn(variables, *inputs, train=False, key=None) -> (out, state)` (`Net.fn`)."""
  check_function(fn)
  check_arrays(variables)
  return Net(fn, variables, example, jax.tree.map(struct, variables))
