"""Channels removed or put in another order: the same equations on other arrays.

What is kept of the axes of some values, by index, is kept of the axes that go with them, in every leaf and every
intermediate (`axes`). The function is traced at its original shapes and evaluated on the new arrays, with new shapes in
the equations that carry shapes in their parameters. What makes numbers from a shape (random bits, iota) makes them as
before and keeps those of the kept channels, so that dropout removes what it removed.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from leanax.core.errors import UserError
from leanax.graph import versions
from leanax.graph.axes import Axes, Axis, is_depthwise
from leanax.graph.emit import Emitter, Replacement
from leanax.graph.program import Node, touched
from leanax.graph.sites import Analysis

Kept = Mapping[Axis, tuple[str, Sequence[int]]]  # axis of a value: how errors call it, the kept indices
Cut = tuple[np.ndarray | None, ...]  # for each axis of a value what is kept of it


class Sizes:
  """What is kept of each axis of each value of a program.

  Args:
    analysis: of the program.
    what: what errors say cannot be done to channels.
    allowed: equations that mix the entries of an axis and may (sums, where only the order changes).
  """

  def __init__(self, analysis: Analysis, what: str = "removed", allowed: Collection[str] = ()):
    self.analysis, self.what, self.allowed = analysis, what, allowed
    self.axes = Axes(analysis.program)
    self.kept: dict[Axis, np.ndarray] = {}

  def inside(self, analysis: Analysis, kept: Kept) -> "Sizes":
    """Returns what is kept in another program, such as a custom rule's."""
    sizes = Sizes(analysis, self.what, self.allowed)
    sizes._keep(kept)
    return sizes

  def keep(self, kept: Kept) -> None:
    """Keeps these indices of the axes as they are after what was kept before.

    Raises:
      UserError: an axis cannot be followed to its readers, goes with one of which others are kept, or is returned.
    """
    self._keep(kept)
    for operand, ref in zip(self.analysis.sites[-1].op.inputs, self.analysis.program.body.outputs, strict=True):
      if operand.leaf is None and self.is_cut(ref):
        names = ", ".join(repr(name) for name, _ in kept.values())
        raise UserError(f"the channels of {names} cannot be {self.what}: the function returns them")

  def _keep(self, kept: Kept) -> None:
    found: dict[Axis, np.ndarray] = {}
    for axis, (name, indices) in kept.items():
      root = self.axes.find(axis)
      through = sorted(self.axes.reasons.get(root, set()) - set(self.allowed))
      if through:
        first = self.axes.blocked[root]
        raise UserError(
          f"the channels of {name!r} cannot be {self.what}: they cannot be followed through "
          f"{(first if first in through else through[0])!r}"
        )
      if root in found and not np.array_equal(found[root], indices):
        raise UserError(f"the channels of {name!r} go with those of another site, of which others are kept")
      found[root] = np.asarray(indices, np.int32)
    for root, indices in found.items():
      self.kept[root] = self.kept[root][indices] if root in self.kept else indices

  def cut(self, ref: Any) -> Cut:
    """What is kept of each axis of a value."""
    if isinstance(ref, jex.Literal):
      return ()
    return tuple(self.kept.get(self.axes.find((ref, i))) for i in range(len(self.axes.shape(ref))))

  def is_cut(self, ref: Any) -> bool:
    return any(keep is not None for keep in self.cut(ref))

  def shape(self, ref: Any) -> tuple[Any, ...]:
    """The new shape of a value."""
    return tuple(n if keep is None else len(keep) for n, keep in zip(self.axes.shape(ref), self.cut(ref), strict=True))

  def take(self, ref: Any, value: Any) -> Any:
    """Keeps of a value what is kept of its axes, where that has not been done."""
    for axis, (keep, whole) in enumerate(zip(self.cut(ref), self.axes.shape(ref), strict=True)):
      if keep is not None and value.shape[axis] == whole:
        value = jnp.take(value, keep, axis=axis)
    return value

  def leaves(self, variables: Any) -> Any:
    """Returns the variables with what is kept of each leaf, in the same containers; shapes give shapes."""
    leaves, structure = jax.tree.flatten(variables)
    numbers = self.analysis.program.body.inputs
    return structure.unflatten([self._leaf(number, leaf) for number, leaf in zip(numbers, leaves, strict=False)])

  def _leaf(self, number: int, leaf: Any) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
      return self.take(number, leaf)
    return jax.ShapeDtypeStruct(self.shape(number), leaf.dtype, weak_type=leaf.weak_type)

  def run(self, values: Sequence[Any]) -> list[Any]:
    """Returns the outputs on leaves that were cut and whole inputs.

    Raises:
      UserError: a leaf has not the shape that was kept of it.
    """
    body = self.analysis.program.body
    for number, value, name in zip(body.inputs, values, self.analysis.program.leaves, strict=False):
      if jnp.shape(value) != self.shape(number):
        raise UserError(f"{name!r} has the shape {jnp.shape(value)}, expected {self.shape(number)} of the cut model")
    return self.emitter().run(body, values, {})[0]

  def emitter(self) -> Emitter:
    """Evaluates the program on values of the new shapes."""
    program = self.analysis.program
    changed = [n for n in program.nodes if any(self.is_cut(ref) for ref in (*n.inputs, *n.outputs))]
    edits = {node.index: Replacement(node.inputs, self._resized(node)) for node in changed if not node.form}
    consts = {n: self.take(n, value) for n, value in self.analysis.constants.items() if self.is_cut(n)}
    opened = touched(program, [node.index for node in changed])
    return Emitter(self.analysis, edits=edits, everything=True, touched=opened, constants=consts, sizes=self)

  def _resized(self, node: Node) -> Callable[..., tuple[Any, ...]]:
    def call(*values: Any) -> tuple[Any, ...]:
      if not any(self.is_cut(ref) for ref in node.inputs) and node.primitive != "broadcast_in_dim":
        return tuple(self.take(n, v) for n, v in zip(node.outputs, versions.rebind(node.eqn, values), strict=True))
      change = _PARAMS.get(node.primitive)
      return versions.rebind(node.eqn, values, change(self, node) if change else {})

    return call


def _slice(sizes: Sizes, node: Node) -> dict[str, Any]:
  ends = zip(node.params["limit_indices"], sizes.cut(node.inputs[0]), strict=True)
  return {"limit_indices": tuple(end if keep is None else len(keep) for end, keep in ends)}


def _conv(sizes: Sizes, node: Node) -> dict[str, Any]:
  if node.params["feature_group_count"] == 1 or not is_depthwise(sizes.axes, node):
    return {}
  return {"feature_group_count": sizes.shape(node.inputs[1])[node.params["dimension_numbers"].rhs_spec[0]]}


# Equations that carry shapes in their parameters: their new ones.
_PARAMS: dict[str, Callable[[Sizes, Node], dict[str, Any]]] = {
  "broadcast_in_dim": lambda sizes, node: {"shape": sizes.shape(node.outputs[0])},
  "reshape": lambda sizes, node: {"new_sizes": sizes.shape(node.outputs[0])},
  "dynamic_slice": lambda sizes, node: {"slice_sizes": sizes.shape(node.outputs[0])},
  "slice": _slice,
  "conv_general_dilated": _conv,
}
