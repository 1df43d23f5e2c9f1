"""Leaves that hold many layers: those that a loop reads a slice of in each of its turns."""

from collections.abc import Callable
from typing import Any

from jax.extend import core as jex

from leanax.graph.axes import Axes
from leanax.graph.program import Node, read
from leanax.graph.sites import Analysis


def stacked_axes(fn: Callable[..., Any], variables: Any, *inputs: Any) -> dict[str, tuple[int, ...]]:
  """The axes along which leaves hold layers, by the leaf's name; leaves without any are left out.

  Such an axis is one that a scan goes along, or at which a loop takes one index at a time; of scans in scans each has
  its own. Casts, transposes and arithmetic on parameters are looked through.

  Args:
    fn: `fn(variables, *inputs) -> out`.
    variables: a tree of arrays or `jax.ShapeDtypeStruct`.
    *inputs: an example, or its shapes.
  """
  program = read(fn, variables, *inputs)
  analysis, axes = Analysis(program), Axes(program)
  found: dict[int, set[int]] = {}
  for node in program.nodes:
    for ref, axis in _walked(analysis, node):
      if isinstance(ref, jex.Literal):
        continue
      for leaf in analysis.value(ref).leaves:
        number = program.body.inputs[leaf]
        same = [i for i in range(len(axes.shape(number))) if axes.find((number, i)) == axes.find((ref, axis))]
        found.setdefault(leaf, set()).update(same)
  return {program.leaves[leaf]: tuple(sorted(found[leaf])) for leaf in sorted(found) if found[leaf]}


def _walked(analysis: Analysis, node: Node) -> list[tuple[Any, int]]:
  """The operands of a node, and the axes of theirs that it goes along."""
  if node.form == "scan":
    consts, carry, _ = node.split
    return [(ref, 0) for ref in node.inputs[consts + carry :]]
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
