"""The dependencies of a function's outputs: the leaves that they read, and the function without everything else."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
from jax.extend import core as jex

from leanax.graph.emit import Emitter, Replacement
from leanax.graph.program import Body, Node, inside, read, touched
from leanax.graph.sites import Analysis


def live(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Returns the function, `fn2(variables, *inputs) -> out`, without the operations that its outputs do not depend on.

  XLA drops these anyway; this is for what reads the traced function, such as quantizers that look for its last site.
  """

  def alive(variables: Any, *inputs: Any) -> Any:
    analysis = Analysis(read(fn, variables, *inputs))
    opened = calls(analysis.program.body)
    nodes, _ = needed(analysis, {}, opened)
    emitter = Emitter(analysis, live=nodes, touched=opened)
    out, _ = emitter.run(analysis.program.body, jax.tree.leaves((variables, inputs)), {})
    return jax.tree.unflatten(analysis.program.out_tree, out)

  return alive


def leaves_read(fn: Callable[..., Any], variables: Any, *inputs: Any) -> set[str]:
  """Returns the names of the leaves of the variables that the outputs depend on; arguments may be shapes."""
  analysis = Analysis(read(fn, variables, *inputs))
  program = analysis.program
  _, values = needed(analysis, {}, calls(program.body))
  return {name for name, number in zip(program.leaves, program.body.inputs, strict=False) if number in values}


def read_by_sites(analysis: Analysis) -> tuple[set[int], set[int]]:
  """Returns the nodes that the outputs depend on, and the activations that operations of interest among them read.

  A function that leaves out some of a model's outputs still holds the operations behind those.
  """
  nodes, _ = needed(analysis, {}, calls(analysis.program.body))
  sites = [site for site in analysis.sites if site.node is None or site.node.index in nodes]
  return nodes, {analysis.value(ref).base for site in sites for ref in site.refs}


def calls(body: Body) -> set[int]:
  """Returns the calls of jitted functions that can be opened one inside the other, from the outside."""
  found: set[int] = set()
  for node in body.nodes:
    if node.form == "jit":
      found |= {node.index} | calls(node.bodies[0])
  return found


def needed(
  analysis: Analysis,
  replaced: Mapping[int, Replacement],
  opened: Collection[int] = (),
  outputs: Collection[Any] | None = None,
  effects: bool = True,
) -> tuple[set[int], set[int]]:
  """Returns the nodes and the values that the outputs depend on after these replacements.

  Calls are looked into where a replacement is in them, or where they are among those `opened`; other calls are whole.
  `outputs` are those that count, all by default; what has `effects` is needed, too, unless they are not wanted.
  """
  back = _Backwards(analysis, replaced, touched(analysis.program, {*replaced, *opened}), set(), set(), effects)
  for ref in analysis.program.body.outputs if outputs is None else outputs:
    back.need(ref)
  back.body(analysis.program.body)
  return back.nodes, back.values


class _Backwards(NamedTuple):
  analysis: Analysis
  replaced: Mapping[int, Replacement]
  opened: Collection[int]
  nodes: set[int]
  values: set[int]
  effects: bool

  def need(self, ref: Any) -> None:
    for one in (ref, self.analysis.resolve(ref)):
      if not isinstance(one, jex.Literal):
        self.values.add(one)

  def body(self, body: Body) -> None:
    for node in reversed(body.nodes):
      wanted = any(number in self.values for number in node.outputs) or (self.effects and bool(node.eqn.effects))
      if node.form in ("jit", "remat") and node.index in self.opened and node.index not in self.replaced:
        self.through(node, wanted)
      elif wanted:
        self.nodes.add(node.index)
        edit = self.replaced.get(node.index)
        if edit is None:
          self.nodes.update(inside(node))
        for ref in node.inputs if edit is None else edit.refs:
          self.need(ref)

  def through(self, node: Node, wanted: bool) -> None:
    inner = node.bodies[0]
    for number, ref in zip(node.outputs, inner.outputs, strict=True):
      if number in self.values:
        self.need(ref)
    self.body(inner)
    for number, ref in zip(inner.inputs, node.inputs, strict=True):
      if number in self.values:
        self.need(ref)
    if wanted or any(one.index in self.nodes for one in inner.nodes):
      self.nodes.add(node.index)
