"""What a function's outputs depend on: the leaves that they read, and the function without everything else."""

from collections.abc import Callable
from typing import Any

import jax

from leanax.graph.edit import needed
from leanax.graph.emit import Emitter
from leanax.graph.program import Body, read
from leanax.graph.sites import Analysis


def live(fn: Callable[..., Any]) -> Callable[..., Any]:
  """The same function, `fn2(variables, *inputs) -> out`, without the operations that its outputs do not depend on.

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
  """The names of the leaves of the variables that the outputs depend on; arguments may be shapes."""
  analysis = Analysis(read(fn, variables, *inputs))
  program = analysis.program
  _, values = needed(analysis, {}, calls(program.body))
  return {name for name, number in zip(program.leaves, program.body.inputs, strict=False) if number in values}


def read_by_sites(analysis: Analysis) -> tuple[set[int], set[int]]:
  """The nodes that the outputs depend on, and the activations that operations of interest among them read.

  A function that leaves out some of a model's outputs still holds the operations behind those.
  """
  nodes, _ = needed(analysis, {}, calls(analysis.program.body))
  sites = [site for site in analysis.sites if site.node is None or site.node.index in nodes]
  return nodes, {analysis.value(ref).base for site in sites for ref in site.refs}


def calls(body: Body) -> set[int]:
  """The calls of jitted functions that can be opened one inside the other, from the outside."""
  found: set[int] = set()
  for node in body.nodes:
    if node.form == "jit":
      found |= {node.index} | calls(node.bodies[0])
  return found
