"""One pass over a program: where each value comes from. Linear in the number of equations."""

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core as jex

from leanax.graph import layout, versions
from leanax.graph.layout import View
from leanax.graph.ops import VARIES, leaf_moves, moves
from leanax.graph.program import Body, Node, Program, Ref

# What an index may be worked out with: small integers, whatever framework wrote them.
INDEX_ARITHMETIC = frozenset(
  [
    "add",
    "broadcast_in_dim",
    "clamp",
    "concatenate",
    "convert_element_type",
    "eq",
    "ge",
    "gt",
    "iota",
    "le",
    "lt",
    "max",
    "min",
    "mul",
    "ne",
    "neg",
    "rem",
    "reshape",
    "select_n",
    "slice",
    "squeeze",
    "sub",
  ]
)
FAR = -(1 << 40)  # roots below it are arguments of a scan's body, or lookups in a table, and no operations


@dataclass(slots=True, eq=False)
class Value:
  """The facts about a value.

  Attributes:
    data: depends on the inputs, and not on the variables and constants alone.
    leaves: the variables' leaves it depends on (empty for data).
    exact: the leaf whose own numbers it holds.
    view: where they lie in that leaf, if that is known; also of numbers taken out of it at constant indices.
    roots: the nearest operations it comes from (inputs count down from -1).
    base: the number of the value whose numbers it holds: the identity of an activation.
    producer: the node it comes from.
  """

  aval: Any
  data: bool = False
  leaves: frozenset[int] = frozenset()
  exact: int | None = None
  view: View | None = None
  roots: frozenset[int] = frozenset()
  base: int = -1
  producer: Node | None = None


class Scope(NamedTuple):
  """The place of a node: inside which scans, how often it runs, why it cannot be replaced, in which branches."""

  scans: tuple[int, ...] = ()
  repeats: Any = 1
  frozen: str | None = None
  branches: tuple[tuple[int, int], ...] = ()


class Flow:
  """The facts about a program's values.

  Attributes:
    values: by number, after `resolve`.
    constants: the constants of every body by number.
    flat: the nodes that compute, in order; calls, checkpoints and custom rules are looked through.
    scopes: where each node stands, by its index.
    handed: what a scan hands to its body, by the number inside: the operand, the scan's length, whether it is sliced.
    labels: names of roots that are no operations.
  """

  def __init__(self, program: Program):
    self.program = program
    self.same: list[Ref] = list(range(len(program.avals)))
    self.values: dict[int, Value] = {}
    self.constants: dict[int, Any] = {}
    self.flat: list[Node] = []
    self.scopes: dict[int, Scope] = {}
    self.scope = Scope()
    self.labels: dict[int, str] = {}
    self._evaluated: dict[int, np.ndarray | None] = {}
    self.handed: dict[int, tuple[Ref, int, bool]] = {}

  def recognise(self, node: Node, operands: list[Value]) -> None:
    """Called for each plain node after its values are known."""

  def resolve(self, ref: Ref) -> Ref:
    """Returns the number of a value after looking through calls, checkpoints and rules, or a Literal."""
    return ref if isinstance(ref, jex.Literal) else self.same[ref]

  def value(self, ref: Ref) -> Value:
    ref = self.resolve(ref)
    return Value(ref.aval) if isinstance(ref, jex.Literal) else self.values[ref]

  def run(self) -> None:
    """Walks the whole program, in order."""
    body, leaves = self.program.body, len(self.program.leaves)
    self._constants(body)
    for index, number in enumerate(body.inputs):
      aval = self.program.avals[number]
      if index < leaves:
        view = layout.whole(getattr(aval, "shape", ()))
        self.values[number] = Value(aval, leaves=frozenset((index,)), exact=index, view=view, base=number)
      else:
        self.values[number] = Value(aval, data=True, roots=frozenset((leaves - index - 1,)), base=number)
    self._run(body)

  def _constants(self, body: Body) -> None:
    for number, value in body.consts:
      self.constants[number] = value
      self.values[number] = Value(self.program.avals[number], base=number)

  def _run(self, body: Body) -> None:
    for node in body.nodes:
      self.scopes[node.index] = self.scope
      if node.form in ("jit", "remat", "rule"):
        self._through(node)
      elif node.form == "scan":
        self._scan(node)
      elif node.form in ("cond", "while"):
        self._branches(node)
      elif node.form == "opaque" and node.bodies:
        self._opaque(node)
      else:
        self._plain(node)

  def _through(self, node: Node) -> None:
    """Calls, checkpoints and custom rules: arguments and results are the same values inside and outside."""
    before = self.scope
    if node.form == "rule":
      self.scope = before._replace(frozen=before.frozen or f"inside a {node.primitive.removesuffix('_call')} rule")
    elif node.form == "remat" and node.params["differentiated"]:
      self.scope = before._replace(frozen=before.frozen or "inside a checkpoint that was differentiated")
    inner = node.bodies[0]
    self._enter(inner, [self.resolve(ref) for ref in node.inputs])
    for number, ref in zip(node.outputs, inner.outputs, strict=True):
      self.same[number] = self.resolve(ref)
    self.scope = before

  def _enter(self, body: Body, refs: Sequence[Ref]) -> None:
    self._constants(body)
    for number, ref in zip(body.inputs, refs, strict=True):
      self.same[number] = ref
    self._run(body)

  def _scan(self, node: Node) -> None:
    before, body = self.scope, node.bodies[0]
    self.scope = before._replace(scans=(*before.scans, node.index), repeats=before.repeats * node.params["length"])
    consts, carry, _ = node.split
    operands = [self.value(ref) for ref in node.inputs]
    reached = _carried(body, consts, carry)
    self._constants(body)
    for place, (number, outer) in enumerate(zip(body.inputs, operands, strict=True)):
      self.handed[number] = (node.inputs[place], node.params["length"], place >= consts)
      carried = consts <= place < consts + carry
      known = Value(self.program.avals[number], outer.data, outer.leaves, outer.exact, outer.view, base=number)
      if outer.view is not None:
        length = node.params["length"]
        known.view = layout.repeated(outer.view, length) if place < consts else layout.scanned(outer.view)
      if carried:  # what comes round again depends on all that reaches it; a counter on nothing
        sources = [v for i, v in enumerate(operands) if reached[place - consts] >> i & 1]
        known.data, known.exact, known.view = any(v.data for v in sources), None, None
        known.leaves = frozenset().union(*(v.leaves for v in sources))
      if known.data:
        known.leaves, known.exact, known.view, known.roots = frozenset(), None, None, frozenset((FAR - number,))
      self.values[number] = known
    self._run(body)
    self.scope = before
    self._results(node, [[self.value(ref)] for ref in body.outputs])
    self.flat.append(node)

  def _opaque(self, node: Node) -> None:
    """Follows, for example, a body mapped over devices: in the shapes of the inside, with the operands' leaves."""
    before, body = self.scope, node.bodies[0]
    frozen = before.frozen or f"inside a {node.primitive}"
    self.scope = before._replace(repeats=before.repeats * versions.copies(node.params), frozen=frozen)
    for number, ref in zip(body.inputs, node.inputs, strict=True):
      outer = self.value(ref)
      roots = frozenset((FAR - number,)) if outer.data else frozenset()
      self.values[number] = Value(
        self.program.avals[number], outer.data, outer.leaves, outer.exact, roots=roots, base=number
      )
    self._constants(body)
    self._run(body)
    self.scope = before
    self._results(node, [[self.value(ref)] for ref in body.outputs])
    self.flat.append(node)

  def _branches(self, node: Node) -> None:
    before = self.scope
    if node.form == "cond":
      for place, body in enumerate(node.bodies):
        self.scope = before._replace(branches=(*before.branches, (node.index, place)))
        self._enter(body, [self.resolve(ref) for ref in node.inputs[1:]])
      self.scope = before
      self._results(
        node, list(zip(*([self.value(r) for r in b.outputs] for b in node.bodies), strict=True)), node.inputs[:1]
      )
    else:
      frozen = before.frozen or "inside a while loop"
      self.scope = before._replace(scans=(*before.scans, node.index), frozen=frozen)
      conds, consts, _ = node.split
      data = any(self.value(ref).data for ref in node.inputs)
      for body, first in zip(node.bodies, (node.inputs[:conds], node.inputs[conds : conds + consts]), strict=True):
        for number in body.inputs[len(first) :]:
          roots = frozenset((FAR - number,)) if data else frozenset()
          self.values[number] = Value(self.program.avals[number], data, roots=roots, base=number)
        self._enter(body, [*(self.resolve(ref) for ref in first), *body.inputs[len(first) :]])
      self.scope = before
      self._results(node, [[self.value(ref)] for ref in node.bodies[1].outputs], node.inputs)
    self.flat.append(node)

  def _results(self, node: Node, sources: Sequence[Sequence[Value]], also: Sequence[Ref] = ()) -> None:
    """Outputs that come from these values inside; `also` are operands that everything depends on."""
    extra = [self.value(ref) for ref in also]
    for number, inside in zip(node.outputs, sources, strict=True):
      self._store(number, node, [*inside, *extra])

  def _store(self, number: int, node: Node, sources: Sequence[Value]) -> Value:
    data = any(v.data for v in sources)
    known = Value(self.program.avals[number], data, base=number, producer=node)
    if data:
      known.roots = frozenset().union(*(v.roots for v in sources if v.data))
    else:
      known.leaves = frozenset().union(*(v.leaves for v in sources))
    self.values[number] = known
    return known

  def _plain(self, node: Node) -> None:
    operands = [self.value(ref) for ref in node.inputs]
    self.flat.append(node)
    for place, number in enumerate(node.outputs):
      known = self._store(number, node, operands)
      first = operands[0] if operands else None
      if first is None or not isinstance(getattr(first.aval, "shape", None), tuple):
        continue
      if not known.data:
        if leaf_moves(node.primitive, first.aval, known.aval):
          known.exact = first.exact
        if first.view is not None and (known.exact is not None or node.primitive == "gather"):
          indices = functools.partial(self._known, node.inputs[1:])
          known.view = layout.move(node.primitive, node.params, first.view, known.aval.shape, place, indices)
      elif first.data and moves(node.primitive, first.aval, known.aval):
        known.base = first.base
      elif node.primitive == "gather" and len(first.leaves) == 1:
        known.roots = frozenset((FAR - number,))
        self.labels[FAR - number] = self.program.leaves[next(iter(first.leaves))]
    self.recognise(node, operands)

  def _known(self, refs: Sequence[Ref]) -> list[np.ndarray | None]:
    return [self.known(ref) for ref in refs]

  def known(self, ref: Ref) -> np.ndarray | None:
    """Returns the number that a value is in every call, from literals and constants; None if it depends on more."""
    ref = self.resolve(ref)
    if isinstance(ref, jex.Literal):
      return np.asarray(ref.val)
    if ref not in self._evaluated:
      self._evaluated[ref] = self._evaluate(ref, self.values[ref])
    return self._evaluated[ref]

  def _evaluate(self, number: int, value: Value) -> np.ndarray | None:
    node = value.producer
    if value.data or value.leaves:
      return None
    if node is None:
      constant = self.constants.get(number)
      return None if constant is None or isinstance(constant, jax.core.Tracer) else np.asarray(constant)
    if node.primitive in VARIES:
      return self.known(node.inputs[0])
    sources = self._known(node.inputs) if node.primitive in INDEX_ARITHMETIC else [None]
    if any(source is None for source in sources):
      return None
    with jax.ensure_compile_time_eval():
      return np.asarray(versions.rebind(node.eqn, tuple(sources))[0])


def _carried(body: Body, consts: int, carry: int) -> list[int]:
  """Returns for each carried value of a scan the inputs of its body that reach it in any iteration, as bits."""
  reach = {number: 1 << place for place, number in enumerate(body.inputs)}

  def of(refs: Sequence[Ref]) -> int:
    return functools.reduce(operator.or_, (reach.get(ref, 0) for ref in refs if not isinstance(ref, jex.Literal)), 0)

  for node in body.nodes:
    reach.update(dict.fromkeys(node.outputs, of(node.inputs)))
  found = [of([body.inputs[consts + i], body.outputs[i]]) for i in range(carry)]
  for i in range(carry):  # what reaches what reaches it, as Warshall has it
    for j in range(carry):
      if found[j] >> consts + i & 1:
        found[j] |= found[i]
  return found
