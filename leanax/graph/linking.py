"""The axes of a program's values that are the same units: the one union-find over axes.

Each equation links the axes of its operands and results (`equations`), and those that hold others link what is inside.
Splits, concatenations, padding and reshapes are followed too, because the units of an axis may be those of several.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from leanax.graph import equations, units
from leanax.graph.equations import Trees
from leanax.graph.program import Body, Node, Program
from leanax.graph.units import Tree, Units, unify


class Links(Trees):
  """The trees of the axes of every value of a program, by its number; what is opaque has none inside."""

  def __init__(self, program: Program):
    super().__init__(program)
    self._enter(program.body, [None] * len(program.body.inputs))

  def _enter(self, body: Body, given: Sequence[list[Tree] | None]) -> None:
    for number, value in body.consts:
      self.trees[number] = _constant(value, getattr(self.program.avals[number], "shape", ()))
    for number, trees in zip(body.inputs, given, strict=True):
      if trees is not None:
        self.trees[number] = trees
      self.new(number)
    for node in body.nodes:
      self._node(node)

  def _node(self, node: Node) -> None:
    if node.form in _HOLDING:
      self.lines.append(equations.line(node))
      _HOLDING[node.form](self, node)
      self.lines.pop()
      return
    for number in node.outputs:
      self.new(number)
    equations.link(self, node)

  def inside(self, body: Body, given: Sequence[list[Tree]], node: Node, outputs: Sequence[list[Tree]]) -> None:
    """A body with these trees for its operands, whose results are these."""
    self._enter(body, given)
    for ref, trees in zip(body.outputs, outputs, strict=True):
      for one, other in zip(self.of(ref), trees, strict=True):
        unify(one, other, self.reason(node))


def _constant(value: Any, shape: tuple[int, ...]) -> list[Tree]:
  """An array among the constants tells its units apart, unless all of them have the same numbers."""
  trees: list[Tree] = [Units(n) for n in shape]
  for axis, tree in enumerate(trees):
    known = None if isinstance(value, jax.core.Tracer) else np.asarray(value)
    if tree.size > 1 and (known is None or not np.array_equal(known, np.take(known, [0] * tree.size, axis))):
      units.distinguish(tree, "an array among the function's constants")
  return trees


def _through(links: Links, node: Node) -> None:
  operands = node.inputs[1:] if node.form == "cond" else node.inputs
  for body in node.bodies:
    links.inside(body, [links.of(ref) for ref in operands], node, [links.new(number) for number in node.outputs])


def _scan(links: Links, node: Node) -> None:
  """The carry of a scan keeps its units; the axis of the layers is the scan's own."""
  body, (consts, carry, _) = node.bodies[0], node.split
  given = [links.of(ref)[int(place >= consts + carry) :] for place, ref in enumerate(node.inputs)]
  outputs = [links.new(number)[int(place >= carry) :] for place, number in enumerate(node.outputs)]
  for place, number in enumerate(node.outputs[:carry]):
    for one, other in zip(links.of(node.inputs[consts + place]), links.of(number), strict=True):
      unify(one, other, links.reason(node))
  for ref in (*node.inputs[consts + carry :], *node.outputs[carry:]):
    links.block(node, links.of(ref)[:1])
  links.inside(body, given, node, outputs)


def _while(links: Links, node: Node) -> None:
  conds, consts, _ = node.split
  test, body = node.bodies
  given = [links.of(ref) for ref in node.inputs]
  outputs = [links.new(number) for number in node.outputs]
  for one, other in zip(given[conds + consts :], outputs, strict=True):
    for a, b in zip(one, other, strict=True):
      unify(a, b, links.reason(node))
  links.inside(test, [*given[:conds], *given[conds + consts :]], node, [[]])
  links.inside(body, given[conds:], node, outputs)


_HOLDING = {"jit": _through, "remat": _through, "rule": _through, "cond": _through, "scan": _scan, "while": _while}
