"""Leaves that hold many layers: those that a loop reads a slice of in each of its turns."""

from collections.abc import Callable
from typing import Any

from jax.extend import core as jex

from leanax.graph.linking import Links
from leanax.graph.program import Node, read
from leanax.graph.sites import Analysis
from leanax.graph.units import Units, units


def stacked_axes(fn: Callable[..., Any], variables: Any, *inputs: Any) -> dict[str, tuple[int, ...]]:
  """Returns the axes along which leaves hold layers, by the leaf's name; leaves without any are left out.

  Such an axis is one that a scan goes along, or at which a loop takes one index at a time; of scans in scans each has
  its own, or all of them one axis that is flattened. Casts, transposes and arithmetic on parameters are looked through.

  Args:
    fn: `fn(variables, *inputs) -> out`.
    variables: a tree of arrays or `jax.ShapeDtypeStruct`.
    *inputs: example inputs, or their shapes.
  """
  program = read(fn, variables, *inputs)
  analysis, links = Analysis(program), Links(program)
  found: dict[int, set[Units]] = {}
  for node in program.nodes:
    for ref, axis in _walked(analysis, node):
      for leaf in analysis.value(ref).leaves if ref in links.trees else ():
        found.setdefault(leaf, set()).update(units(links.of(ref)[axis]))
  stacked = {
    program.leaves[leaf]: tuple(
      axis for axis, tree in enumerate(links.of(program.body.inputs[leaf])) if found[leaf].issuperset(units(tree))
    )
    for leaf in sorted(found)
  }
  return {name: axes for name, axes in stacked.items() if axes}


def _walked(analysis: Analysis, node: Node) -> list[tuple[Any, int]]:
  """Returns the values that a node goes along, and their axes that it goes along."""
  if node.form == "scan":
    consts, carry, _ = node.split
    return [(ref, 0) for ref in node.inputs[consts + carry :] if not isinstance(ref, jex.Literal)]
  scope = analysis.scopes.get(node.index)
  if node.primitive != "dynamic_slice" or scope is None or not scope.scans:
    return []
  whole, starts = node.inputs[0], node.inputs[1:]
  shape = analysis.value(whole).aval.shape
  return [
    (whole, axis)
    for axis, (size, start) in enumerate(zip(node.params["slice_sizes"], starts, strict=True))
    if size == 1 < shape[axis] and not isinstance(analysis.resolve(start), jex.Literal)
  ]
