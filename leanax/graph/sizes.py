"""Channels removed or put in another order: the same equations on other arrays.

What is kept of the units of some axes (those that `graph.groups` lists) is kept of every leaf and every intermediate
that has these units. The function is traced at its original shapes and evaluated on the new arrays, with new shapes in
the equations that carry shapes in their parameters. What makes numbers from a shape (random bits, iota) makes them as
before and keeps those of the kept channels, so that dropout removes what it removed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from leanax.core.errors import UserError
from leanax.graph import units, versions
from leanax.graph.emit import Emitter, Replacement
from leanax.graph.linking import Links
from leanax.graph.program import Node, touched
from leanax.graph.sites import Analysis
from leanax.graph.units import Product, Tree, Units

Axis = tuple[int, int]  # the number of a value, an axis of it
Kept = Mapping[Axis, tuple[str, Sequence[int]]]  # axis of a value: its name in errors, the kept indices
Cut = tuple[np.ndarray | None, ...]  # for each axis of a value what is kept of it


class Sizes:
  """The indices that are kept of each axis of each value of a program.

  Args:
    analysis: of the program.
    what: what errors say cannot be done to channels.
    sums: whether sums and maxima over the channels stay what they are, as they do where only the order changes.
  """

  def __init__(self, analysis: Analysis, what: str = "removed", sums: bool = False):
    self.analysis, self.what, self.sums = analysis, what, sums
    self.links = Links(analysis.program)
    self.kept: dict[Units, np.ndarray] = {}

  def inside(self, analysis: Analysis, kept: Kept) -> "Sizes":
    """Returns what is kept in another program, such as a custom rule's."""
    sizes = Sizes(analysis, self.what, self.sums)
    sizes._keep(kept)
    return sizes

  def keep(self, kept: Kept) -> None:
    """Keeps these indices of the axes as they are after what was kept before.

    Raises:
      UserError: an axis cannot be followed to its readers, goes with one of which others are kept, is returned, or is
        one of the function's inputs.
    """
    self._keep(kept)
    program, names = self.analysis.program, ", ".join(repr(name) for name, _ in kept.values())
    if any(map(self.is_cut, program.body.inputs[len(program.leaves) :])):
      raise UserError(f"the channels of {names} cannot be {self.what}: they go with those of the function's input")
    for operand, ref in zip(self.analysis.sites[-1].op.inputs, program.body.outputs, strict=True):
      if operand.leaf is None and self.is_cut(ref):
        raise UserError(f"the channels of {names} cannot be {self.what}: the function returns them")

  def _keep(self, kept: Kept) -> None:
    found: dict[Units, np.ndarray] = {}
    wanted: list[tuple[str, Tree, np.ndarray]] = []
    for (number, axis), (name, indices) in kept.items():
      tree = self.links.of(number)[axis]
      before = self._indices(tree)
      chosen = np.asarray(indices, np.int32) if before is None else before[np.asarray(indices, np.int32)]
      wanted.append((name, tree, chosen))
      for one, place in units.places(tree).items():
        self._check(name, one)
        own = _in_order(place[chosen])
        if one in found and not np.array_equal(found[one], own):
          raise UserError(f"the channels of {name!r} go with those of another site, of which others are kept")
        found[one] = own
    self.kept |= found
    for name, tree, chosen in wanted:
      if not np.array_equal(self._whole(tree), chosen):
        raise UserError(
          f"the channels of {name!r} cannot be {self.what} one by one: they are made of several axes, "
          f"{' and '.join(str(one.size) for one in units.units(tree))} long, which go with others"
        )

  def _check(self, name: str, one: Units) -> None:
    """Refuses units that cannot be followed."""
    reasons = [one.reason, *([] if self.sums else sorted(one.reduced))]
    if through := next(filter(None, reasons), None):
      raise UserError(f"the channels of {name!r} cannot be {self.what}: they cannot be followed through {through}")

  def _indices(self, tree: Tree) -> np.ndarray | None:
    """Returns the kept indices of an axis, in order; None where nothing has changed."""
    return self._whole(tree) if any(one in self.kept for one in units.units(tree)) else None

  def _whole(self, tree: Tree) -> np.ndarray:
    tree = units.seen(tree)
    if isinstance(tree, Units):
      return self.kept.get(tree, np.arange(tree.size, dtype=np.int32))
    parts = [self._whole(part) for part in tree.parts]
    found = parts[0]
    if isinstance(tree, Product):
      for part, indices in zip(tree.parts[1:], parts[1:], strict=True):
        found = (found[:, None] * np.int32(part.size) + indices).reshape(-1)
      return found
    starts = np.cumsum([0, *(part.size for part in tree.parts)], dtype=np.int32)
    return np.concatenate([start + indices for start, indices in zip(starts, parts, strict=False)])

  def cut(self, ref: Any) -> Cut:
    """Returns the kept indices of each axis of a value."""
    return () if isinstance(ref, jex.Literal) else tuple(map(self._indices, self.links.of(ref)))

  def is_cut(self, ref: Any) -> bool:
    return any(keep is not None for keep in self.cut(ref))

  def shape(self, ref: Any) -> tuple[Any, ...]:
    """Returns the new shape of a value."""
    whole = (tree.size for tree in self.links.of(ref))
    return tuple(n if keep is None else len(keep) for n, keep in zip(whole, self.cut(ref), strict=True))

  def take(self, ref: Any, value: Any) -> Any:
    """Keeps of a value what is kept of its axes, where that has not been done."""
    for axis, (keep, tree) in enumerate(zip(self.cut(ref), self.links.of(ref), strict=True)):
      if keep is not None and value.shape[axis] == tree.size:
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


def _in_order(places: np.ndarray) -> np.ndarray:
  """Returns the units at these places of an axis, each once, in the order in which they come; -1 is none."""
  found, first = np.unique(places[places >= 0], return_index=True)
  return found[np.argsort(first)].astype(np.int32)


def _below(sizes: Sizes, ref: Any, ends: Sequence[int]) -> tuple[int, ...]:
  """Returns the number of kept entries among the first ones of each axis."""
  cut = zip(ends, sizes.cut(ref), strict=True)
  return tuple(end if keep is None else int(np.count_nonzero(keep < end)) for end, keep in cut)


def _slice(sizes: Sizes, node: Node) -> dict[str, Any]:
  keys = ("start_indices", "limit_indices")
  return {key: _below(sizes, node.inputs[0], node.params[key]) for key in keys}


def _split(sizes: Sizes, node: Node) -> dict[str, Any]:
  return {"sizes": tuple(sizes.shape(number)[node.params["axis"]] for number in node.outputs)}


def _pad(sizes: Sizes, node: Node) -> dict[str, Any]:
  (out,), padding = node.outputs, node.params["padding_config"]
  whole = [tree.size for tree in sizes.links.of(out)]
  low = _below(sizes, out, [max(before, 0) for before, _, _ in padding])
  inner = _below(sizes, out, [n - max(after, 0) for n, (_, after, _) in zip(whole, padding, strict=True)])
  cut = zip(padding, sizes.cut(out), low, inner, strict=True)
  return {
    "padding_config": tuple(
      pads if keep is None else (before, len(keep) - end, pads[2]) for pads, keep, before, end in cut
    )
  }


def _conv(sizes: Sizes, node: Node) -> dict[str, Any]:
  spec = node.params["dimension_numbers"]
  channels, kernel = sizes.shape(node.inputs[0])[spec.lhs_spec[1]], sizes.shape(node.inputs[1])[spec.rhs_spec[1]]
  return {"feature_group_count": channels // kernel}


def _gather(sizes: Sizes, node: Node) -> dict[str, Any]:
  table = node.inputs[0]
  cut = zip(node.params["slice_sizes"], sizes.cut(table), strict=True)
  return {"slice_sizes": tuple(n if keep is None else len(keep) for n, keep in cut)}


# Equations that carry shapes in their parameters: their new ones.
_PARAMS: dict[str, Callable[[Sizes, Node], dict[str, Any]]] = {
  "broadcast_in_dim": lambda sizes, node: {"shape": sizes.shape(node.outputs[0])},
  "conv_general_dilated": _conv,
  "dynamic_slice": lambda sizes, node: {"slice_sizes": sizes.shape(node.outputs[0])},
  "gather": _gather,
  "pad": _pad,
  "reshape": lambda sizes, node: {"new_sizes": sizes.shape(node.outputs[0])},
  "slice": _slice,
  "split": _split,
}
