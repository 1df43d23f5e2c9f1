"""Any named intermediate of a function, read without touching the model."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core as jex

from leanax.core.errors import UserError, unknown
from leanax.graph.emit import Emitter
from leanax.graph.makers import exposed
from leanax.graph.program import Node, read, touched
from leanax.graph.sites import Analysis
from leanax.graph.view import Graph


def taps(fn: Callable[..., Any], names: Sequence[str]) -> Callable[..., tuple[Any, dict[str, Any]]]:
  """Returns the function that also returns intermediates: `fn2(variables, *inputs) -> (out, {name: array})`.

  Args:
    fn: `fn(variables, *inputs) -> out`.
    names: names of activations (`Conv_0/kernel:out`, as operands carry them) or of operations (`Conv_0/kernel`, its
      output). What is inside a scan comes stacked along a leading layer axis.

  Raises:
    UserError: names as one text; a name that the traced function does not have, or one inside a while loop or a custom
      rule.
  """
  if isinstance(names, str):
    raise UserError(f"the names of taps are the text {names!r}; expected a list of names, such as [{names!r}]")

  def tapped(variables: Any, *inputs: Any) -> tuple[Any, dict[str, Any]]:
    analysis = Analysis(read(fn, variables, *inputs))
    program = analysis.program
    makers = outermost_makers(analysis)
    watch = watched(analysis, names)
    opened = touched(program, [makers[number].index for number in watch if number in makers])
    emitter = Emitter(analysis, touched=opened, watch=watch)
    out, found = emitter.run(program.body, jax.tree.leaves((variables, inputs)), {})
    return jax.tree.unflatten(program.out_tree, out), {name: found[name] for name in names}

  return tapped


def outermost_makers(analysis: Analysis) -> dict[int, Node]:
  """Returns the outermost node that each value comes out of: that of a relu is outside of its custom rule."""
  return {number: node for node in analysis.program.nodes for number in node.outputs}


def watched(analysis: Analysis, names: Sequence[str], operations: bool = True) -> dict[int, list[str]]:
  """Returns the names by the number of the outermost value that each stands for.

  Args:
    analysis: of the function.
    names: of activations.
    operations: whether a name may be that of an operation, for its output.

  Raises:
    UserError: an unknown name, or one of what cannot be read.
  """
  sites = {site.op.name: site.node.outputs[0] for site in analysis.sites if operations and site.node is not None}
  tensors = {name: number for number, name in analysis.tensors.items()}
  if not tensors.keys() | sites.keys() >= set(names):
    tensors = {name: analysis.resolve(maker.value) for name, maker in exposed(Graph(analysis)).items()} | tensors
  makers = outermost_makers(analysis)
  outermost: dict[int, int] = {}
  for node in analysis.program.nodes:  # the outer ones come last
    for number in node.outputs:
      same = analysis.resolve(number)
      if not isinstance(same, jex.Literal):
        outermost[same] = number
  watch: dict[int, list[str]] = {}
  for name in names:
    if name not in sites and name not in tensors:
      raise unknown("activation or operation", name, [*tensors, *sites])
    number = sites[name] if name in sites else tensors[name]
    number = outermost.get(number, number)
    frozen = analysis.scopes[makers[number].index].frozen if number in makers else None
    if frozen:
      raise UserError(f"{name!r} cannot be read: it is {frozen}")
    watch.setdefault(number, []).append(name)
  return watch
