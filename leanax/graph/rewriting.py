"""The same function with operations replaced."""

from collections.abc import Callable, Collection
from typing import Any

import jax

from leanax.core.errors import unknown
from leanax.graph.emit import Emitter, Extras, Visit, call_visit
from leanax.graph.flow import Scope
from leanax.graph.makers import exposed
from leanax.graph.ops import Op
from leanax.graph.program import read, touched
from leanax.graph.sites import Analysis, Site
from leanax.graph.view import Graph


def rewrite(
  fn: Callable[..., Any],
  visit: Visit | None,
  *,
  select: Callable[[Op], bool] | None = None,
  everything: bool = False,
  tensors: Collection[str] = (),
) -> Callable[..., tuple[Any, Extras]]:
  """Returns the same function with operations replaced: `fn2(extras, variables, *inputs) -> (out, extras2)`.

  `fn` is traced at the shapes of each call, so one rewritten function serves any batch size. It works under jit, grad,
  vmap, and inside pmap and shard_map.

  Args:
    fn: `fn(variables, *inputs) -> out`.
    visit: `visit(op, inputs, extras)` is called for each operation whose kind is not "other". It returns None to leave
      the operation as it is, or `(outputs, updates)`: outputs of the operation's shapes and types, and a dict of
      entries to write into the extras. It must be a pure function: for what cannot be replaced, and for branches, it is
      called once more.
    select: which operations to show to `visit`; a call, scan or branch that holds none of them is not opened.
    everything: show every equation, and build every equation that holds others anew, custom rules too.
    tensors: names, among those of `graph.exposed`, of activations that are shown as well, where they are made: as an
      operation of the kind "tensor", with the activation's name, that hands on its input. What replaces it every reader
      gets.

  Returns:
    fn2; `extras` is a flat dict keyed by names of operations or tensors. Inside a scan the visitor sees one layer's
    slice; outside, they are stacked along a leading layer axis.

  Raises:
    UserError: an operation was replaced where that is impossible (in a while loop, in a custom rule), or by something
      of another shape or type; an activation that is not exposed.
  """

  def chosen(op: Op) -> bool:
    return visit is not None and (select is None or select(op))

  def rewritten(extras: Extras, variables: Any, *inputs: Any) -> tuple[Any, Extras]:
    analysis = Analysis(read(fn, variables, *inputs))
    program = analysis.program
    shown = analysis.every_site() if everything else analysis.at
    shown = {index: site for index, site in shown.items() if chosen(site.op)}
    activations = _activations(analysis, tensors)
    makers = (n.index for n in program.nodes if not activations.keys().isdisjoint(n.outputs)) if activations else ()
    opened = touched(program, range(len(program.nodes)) if everything else {*shown, *makers})
    emitter = Emitter(analysis, visit, shown, activations, everything=everything, touched=opened)
    out, written = emitter.run(program.body, jax.tree.leaves((variables, inputs)), extras)
    last = analysis.sites[-1].op
    if chosen(last):
      done = call_visit(visit, last, tuple(out), {**extras, **written})
      if done is not None:
        out, written = done[0], {**written, **done[1]}
    return jax.tree.unflatten(program.out_tree, out), {**extras, **written}

  return rewritten


def _activations(analysis: Analysis, names: Collection[str]) -> dict[int, Site]:
  """Returns exposed activations as operations that hand them on, by the number of the value."""
  makers = exposed(Graph(analysis), ()) if names else {}
  found: dict[int, Site] = {}
  for name in names:
    if name not in makers:
      raise unknown("exposed activation", name, makers)
    value = makers[name].value
    operand, node = analysis.operand(value, name), analysis.value(value).producer
    scope = Scope() if node is None else analysis.scopes[node.index]
    op = Op(name, "tensor", (operand,), (operand,), {}, name, repeats=scope.repeats, branches=scope.branches)
    found[value] = Site(op, node, (value,))
  return found
