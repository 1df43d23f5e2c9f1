"""A program evaluated again, with chosen operations replaced and state threaded through.

Nodes that hold nothing chosen are bound as they stand, whole; so with nothing visited the function lowers to the same
text.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core as jex

from core.errors import UserError
from graph import versions
from graph.ops import Op
from graph.program import Body, Node, Program, read
from graph.sites import Analysis, Site

Extras = dict[str, Any]
Visit = Callable[[Op, tuple[Any, ...], Extras], tuple[tuple[Any, ...], Extras] | None]


class Emitter:
  """Evaluates the bodies of an analysed program.

  Args:
    analysis: the program.
    visit: what replaces operations; None replaces nothing.
    chosen: the operations to show to `visit`, by the index of the node where they end.
  """

  def __init__(self, analysis: Analysis, visit: Visit | None, chosen: Mapping[int, Site]):
    self.analysis = analysis
    self.visit = visit
    self.chosen = chosen
    self.touched = _touched(analysis.program, chosen)

  def run(self, body: Body, inputs: Sequence[Any], extras: Extras) -> tuple[list[Any], Extras]:
    """The body's results on these inputs, and the extras that were written."""
    env: dict[int, Any] = dict(body.consts)
    env.update(zip(body.inputs, inputs, strict=True))
    written: Extras = {}
    for node in body.nodes:
      values = [_get(env, ref) for ref in node.inputs]
      outputs, updates = self.node(node, values, env, {**extras, **written} if written else extras)
      written.update(updates)
      env.update(zip(node.outputs, outputs, strict=True))
    return [_get(env, ref) for ref in body.outputs], written

  def node(self, node: Node, values: list[Any], env: dict[int, Any], extras: Extras) -> tuple[Sequence[Any], Extras]:
    site = self.chosen.get(node.index)
    if site is not None:
      done = call_visit(self.visit, site.op, tuple(_get(env, ref) for ref in site.refs), extras)
      if done is not None:
        return done
    if node.index not in self.touched or site is not None:
      return versions.rebind(node.eqn, tuple(values)), {}
    return _FORMS[node.form](self, node, values, extras)

  def _jit(self, node: Node, values: list[Any], extras: Extras) -> tuple[Sequence[Any], Extras]:
    return self.run(node.bodies[0], values, extras)

  def _guard(self, node: Node, values: list[Any], extras: Extras) -> tuple[Sequence[Any], Extras]:
    """Binds the node as it stands, after making sure that the visitor leaves alone what is inside."""
    refusing = Emitter(self.analysis, self._refuse, self.chosen)
    for body in node.bodies:
      jax.eval_shape(lambda *xs, body=body: refusing.run(body, xs, extras)[0], *map(self._struct, body.inputs))
    return versions.rebind(node.eqn, tuple(values)), {}

  def _struct(self, number: int) -> jax.ShapeDtypeStruct:
    aval = self.analysis.program.avals[number]
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)

  def _refuse(self, op: Op, inputs: tuple[Any, ...], extras: Extras) -> None:
    if call_visit(self.visit, op, inputs, extras) is not None:
      raise UserError(f"{op.name!r} cannot be replaced: it is {op.frozen}")


_FORMS: dict[str, Any] = {"jit": Emitter._jit, "rule": Emitter._guard, "while": Emitter._guard}


def _get(env: Mapping[int, Any], ref: Any) -> Any:
  return ref.val if isinstance(ref, jex.Literal) else env[ref]


def _touched(program: Program, chosen: Mapping[int, Site]) -> set[int]:
  """The nodes that are chosen, or hold one that is."""
  touched = set(chosen)
  for node in program.nodes:  # inner nodes come first
    if any(inner.index in touched for body in node.bodies for inner in body.nodes):
      touched.add(node.index)
  return touched


def call_visit(
  visit: Visit | None, op: Op, inputs: tuple[Any, ...], extras: Extras
) -> tuple[tuple[Any, ...], Extras] | None:
  """Shows an operation to the visitor and checks what it answers."""
  done = None if visit is None else visit(op, inputs, extras)
  if done is None:
    return None
  outputs, updates = done
  expected = [(o.shape, o.dtype) for o in op.outputs]
  given = [(jax.numpy.shape(o), jax.numpy.result_type(o)) for o in outputs]
  if given != expected:
    raise UserError(f"the replacement of {op.name!r} returned {_shapes(given)}, expected {_shapes(expected)}")
  return tuple(outputs), dict(updates)


def _shapes(pairs: Sequence[tuple[Any, Any]]) -> str:
  return ", ".join(f"{dtype}[{','.join(map(str, shape))}]" for shape, dtype in pairs) or "nothing"


def rewrite(
  fn: Callable[..., Any], visit: Visit | None, *, select: Callable[[Op], bool] | None = None, everything: bool = False
) -> Callable[..., tuple[Any, Extras]]:
  """The same function with operations replaced: `fn2(extras, variables, *inputs) -> (out, extras2)`.

  `fn` is traced at the shapes of each call, so one rewritten function serves any batch size. It works under jit,
  grad, vmap, and
  inside pmap and shard_map.

  Args:
    fn: `fn(variables, *inputs) -> out`.
    visit: `visit(op, inputs, extras)` is called for each operation whose kind is not "other". It returns None to leave
      the operation as it is, or `(outputs, updates)`: outputs of the operation's shapes and types, and a dict of
      entries to write into the extras.
    select: which operations to show to `visit`; what holds none of them is not opened.
    everything: show every equation, and take every equation that holds others apart and build it anew.

  Returns:
    fn2; `extras` is a flat dict keyed by names of operations or tensors. Inside a scan the visitor sees one layer's
    slice; outside,
    they are stacked along a leading layer axis.

  Raises:
    UserError: an operation was replaced where that is impossible (in a while loop, in a custom rule).
  """
  del everything

  def rewritten(extras: Extras, variables: Any, *inputs: Any) -> tuple[Any, Extras]:
    analysis = Analysis(read(fn, variables, *inputs))
    chosen = {i: s for i, s in analysis.at.items() if select is None or select(s.op)} if visit is not None else {}
    emitter = Emitter(analysis, visit, chosen)
    out, written = emitter.run(analysis.program.body, jax.tree.leaves((variables, inputs)), extras)
    last = analysis.sites[-1].op
    if visit is not None and (select is None or select(last)):
      done = call_visit(visit, last, tuple(out), {**extras, **written})
      if done is not None:
        out, written = done[0], {**written, **done[1]}
    return jax.tree.unflatten(analysis.program.out_tree, out), {**extras, **written}

  return rewritten


__all__ = ["Emitter", "Extras", "Visit", "call_visit", "rewrite"]
