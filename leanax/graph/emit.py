"""A program evaluated again, with chosen operations replaced and state threaded through.

Nodes that hold nothing chosen are bound as they stand, whole; so with nothing visited the function lowers to the same
text. Those that hold something are built anew with the public constructors.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
from jax.extend import core as jex

from leanax.core.errors import UserError
from leanax.graph import control, versions
from leanax.graph.evaluator import Extras
from leanax.graph.ops import Op
from leanax.graph.program import Body, Missing, Node, inside
from leanax.graph.sites import Analysis, Site

Visit = Callable[[Op, tuple[Any, ...], Extras], tuple[tuple[Any, ...], Extras] | None]


class _Replaced(Exception):
  """The visitor replaces an operation."""


class Replacement(NamedTuple):
  """The replacement of a node by an edit: `call` of these values, which may come from other nodes than before."""

  refs: tuple[Any, ...]
  call: Callable[..., tuple[Any, ...]]


@dataclass(frozen=True, eq=False)
class Emitter:
  """Evaluates the bodies of an analysed program.

  Attributes:
    visit: what replaces operations; None replaces nothing.
    chosen: the operations to show to `visit`, by the index of the node where they end.
    tensors: activations to show to `visit`, too, by the number of the value.
    edits: replacements by the index of the node.
    live: the nodes to evaluate; None evaluates all.
    everything: builds every node that holds others anew.
    touched: the nodes to open: those that hold one that is chosen or edited.
    constants: other values of some constants, by number.
    sizes: what was cut from each value (`sizes.Sizes`); None when shapes are the original ones.
    asking: nothing is computed, it is only seen whether the visitor replaces anything.
    watch: names under which values are written into the extras, by number.
    record: what is written: `record(name, value, extras)`.
  """

  analysis: Analysis
  visit: Visit | None = None
  chosen: Mapping[int, Site] = field(default_factory=dict)
  tensors: Mapping[int, Site] = field(default_factory=dict)
  edits: Mapping[int, Replacement] = field(default_factory=dict)
  live: Collection[int] | None = None
  everything: bool = False
  touched: Collection[int] = ()
  watch: Mapping[int, Sequence[str]] = field(default_factory=dict)
  constants: Mapping[int, Any] = field(default_factory=dict)
  sizes: Any = None
  asking: bool = False
  record: Callable[[str, Any, Extras], Any] = lambda name, value, extras: value

  def run(
    self, body: Body, inputs: Sequence[Any], extras: Extras, env: dict[int, Any] | None = None
  ) -> tuple[list[Any], Extras]:
    """Returns the body's results on these inputs, and the extras that were written.

    `env` holds values by number; a call's body shares it with its surroundings, so that an edit may reach across.
    """
    env = {} if env is None else env
    env.update((number, self.constants.get(number, value)) for number, value in body.consts)
    env.update(zip(body.inputs, inputs, strict=True))
    written: Extras = {}
    self._made(body.inputs, env, extras, written)
    self._watched([*(number for number, _ in body.consts), *body.inputs], env, extras, written)
    for node in body.nodes:
      if self.live is not None and node.index not in self.live:
        env.update((number, Missing(f"a result of {node.primitive}")) for number in node.outputs)
        continue
      outputs, updates = self._node(node, env, {**extras, **written} if written else extras)
      written.update(updates)
      env.update(zip(node.outputs, outputs, strict=True))
      self._made(node.outputs, env, extras, written)
      self._watched(node.outputs, env, extras, written)
      if node.form in ("jit", "remat"):
        for number, value in zip(node.outputs, outputs, strict=True):
          same = self.analysis.resolve(number)
          if not isinstance(same, jex.Literal):
            env.setdefault(same, value)
    return [_get(env, ref) for ref in body.outputs], written

  def _made(self, numbers: Sequence[int], env: dict[int, Any], extras: Extras, written: Extras) -> None:
    """Shows activations to the visitor once they are made."""
    for number in numbers if self.tensors else ():
      if number in self.tensors:
        done = call_visit(self.visit, self.tensors[number].op, (env[number],), {**extras, **written})
        if done is not None:
          (env[number],), updates = done
          written.update(updates)

  def _watched(self, numbers: Sequence[int], env: Mapping[int, Any], extras: Extras, written: Extras) -> None:
    if self.watch:
      written.update(
        {name: self.record(name, env[number], extras) for number in numbers for name in self.watch.get(number, ())}
      )

  def _node(self, node: Node, env: dict[int, Any], extras: Extras) -> tuple[Sequence[Any], Extras]:
    edit = self.edits.get(node.index)
    if edit is not None:
      return edit.call(*(_get(env, ref) for ref in edit.refs)), {}
    site = self.chosen.get(node.index)
    if site is not None:
      done = call_visit(self.visit, site.op, tuple(_get(env, ref) for ref in site.refs), extras)
      if done is not None:
        return done
    values = [_get(env, ref) for ref in node.inputs]
    if node.form == "jit" and node.index in self.touched and not self._leaves_alone(node, values, extras):
      return self.run(node.bodies[0], values, extras, env)
    if node.bodies and node.form != "jit" and node.index in self.touched:
      return control.FORMS[node.form](self, node, values, extras)
    lost = next((v for v in values if isinstance(v, Missing)), None)
    if lost is not None:
      raise UserError(f"{lost.leaf!r} was removed by an edit, but {node.primitive!r} still reads it")
    return versions.rebind(node.eqn, tuple(values)), {}

  def _leaves_alone(self, node: Node, values: Sequence[Any], extras: Extras) -> bool:
    """Returns whether the visitor replaces nothing inside: the node is then bound as it stands, with its name."""
    if self.everything or self.asking or self.edits or self.watch or self.visit is None:
      return False

    def visit(op: Op, inputs: tuple[Any, ...], extras: Extras) -> None:
      if call_visit(self.visit, op, inputs, extras) is not None:
        raise _Replaced

    asking = replace(self, visit=visit, asking=True)
    try:
      jax.eval_shape(lambda: asking.run(node.bodies[0], values, extras)[0])
    except _Replaced:
      return False
    return True

  def unedited(self, analysis: Analysis) -> "Emitter":
    """Returns an evaluator of another program that replaces nothing and builds every node anew."""
    return Emitter(analysis, everything=True, touched=range(len(analysis.program.nodes)))

  def guard(self, node: Node, bodies: Sequence[tuple[Body, Sequence[Any]]], extras: Extras) -> None:
    """Makes sure that the visitor leaves alone what is inside a node that cannot be built anew."""
    if not inside(node) & self.chosen.keys():
      return
    refusing = Emitter(self.analysis, self._refuse, self.chosen, touched=self.touched)
    for body, inputs in bodies:
      jax.eval_shape(lambda *xs, body=body: refusing.run(body, xs, extras)[0], *inputs)

  def guard_each(self, node: Node, extras: Extras) -> None:
    """The same for a node whose bodies cannot be evaluated outside of it: each operation by itself."""
    for index in inside(node) & self.chosen.keys():
      op = self.chosen[index].op
      shapes = [jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in op.inputs]
      jax.eval_shape(lambda *xs, op=op: self._refuse(op, xs, extras), *shapes)

  def _refuse(self, op: Op, inputs: tuple[Any, ...], extras: Extras) -> None:
    if call_visit(self.visit, op, inputs, extras) is not None:
      raise UserError(f"{op.name!r} cannot be replaced: it is {op.frozen}")


def _get(env: Mapping[int, Any], ref: Any) -> Any:
  return ref.val if isinstance(ref, jex.Literal) else env[ref]


def call_visit(
  visit: Visit | None, op: Op, inputs: tuple[Any, ...], extras: Extras
) -> tuple[tuple[Any, ...], Extras] | None:
  """Shows an operation to the visitor and checks what it answers."""
  done = None if visit is None else visit(op, inputs, extras)
  if done is None:
    return None
  if not (
    isinstance(done, tuple) and len(done) == 2 and isinstance(done[0], tuple | list) and isinstance(done[1], Mapping)
  ):
    raise UserError(
      f"the visitor returned no (outputs, extras) for {op.name!r}; expected such as (op.bind(*inputs), {{}}), or None"
    )
  outputs, updates = done
  expected = [(o.shape, o.dtype) for o in op.outputs]
  given = [(jax.numpy.shape(o), jax.numpy.result_type(o)) for o in outputs]
  if given != expected:
    raise UserError(f"the replacement of {op.name!r} returned {_shapes(given)}, expected {_shapes(expected)}")
  return tuple(outputs), dict(updates)


def _shapes(pairs: Sequence[tuple[Any, Any]]) -> str:
  return ", ".join(f"{dtype}[{','.join(map(str, shape))}]" for shape, dtype in pairs) or "nothing"
