"""The way of factors per channel through a program whose equations are homogeneous: f(s x) = s f(x) for s > 0.

A value has an exponent along each of its axes that has the channels: 1 where it is multiplied by the factors, -1 where
it is divided by them. Each equation says which exponents go together; they are found outward from one that is given,
and an equation that they contradict is named.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core as jex

from leanax.core.errors import UserError
from leanax.graph import units
from leanax.graph.linking import Links
from leanax.graph.ops import is_float
from leanax.graph.program import Node
from leanax.graph.sites import Analysis
from leanax.graph.units import Units

Var = tuple[int, int]  # the number of a value, an axis of it that has the channels


class Rule(NamedTuple):
  """Exponents whose weighted sum is 0.

  Attributes:
    why: the equation, and the user's line.
    terms: the weights.
    result: of a product; the others are its factors.
  """

  why: str
  terms: Mapping[Var, int]
  result: Var | None = None


class Exponents:
  """The rules that a program's equations set for the exponents along the axes that have some channels.

  Args:
    analysis: of the program.
    links: of the program.
    channels: what is scaled.
    fixed: names of leaves that keep their numbers.
  """

  def __init__(self, analysis: Analysis, links: Links, channels: Units, fixed: Collection[str] = ()):
    self.analysis, self.links, self.channels = analysis, links, channels
    self.rules: list[Rule] = []
    program = analysis.program
    for node in program.nodes:
      _RULES.get(node.form or node.primitive, _unknown)(self, node)
    for body in (program.body, *(body for node in program.nodes for body in node.bodies)):
      self.zero("a constant", *(number for number, _ in body.consts if not self.free(number)))
    for name, number in zip(program.leaves, program.body.inputs, strict=False):
      if name in fixed or not is_float(program.avals[number]):
        self.zero(f"{name!r}, which keeps its numbers", number)
    self.zero("an input of the function", *program.body.inputs[len(program.leaves) :])
    self.zero("an output of the function", *program.body.outputs)

  def axes(self, ref: Any) -> list[int]:
    """Returns the axes of a value that have the channels."""
    return [axis for axis, tree in enumerate(self.trees(ref)) if self.channels in units.units(tree)]

  def trees(self, ref: Any) -> list[units.Tree]:
    """Returns the trees of a value's axes; of none inside what is opaque."""
    ref = self.analysis.resolve(ref)
    return [] if isinstance(ref, jex.Literal) else self.links.trees.get(ref, [])

  def free(self, ref: Any) -> bool:
    """Returns whether a value is a constant that factors above 0 leave as it is: 0, or infinity."""
    if not is_float(self.analysis.value(ref).aval):
      return False
    known = self.analysis.known(ref)
    return known is not None and bool(np.all((known == 0) | np.isinf(known)))

  def zero(self, why: str, *refs: Any) -> None:
    """Says that values are not scaled."""
    self.rules += [Rule(why, {(self.analysis.resolve(ref), axis): 1}) for ref in refs for axis in self.axes(ref)]

  def equal(self, node: Node, *pairs: tuple[Var, Var]) -> None:
    """Says that the axes of each pair have one exponent, which is 0 where only one of them has the channels."""
    for a, b in pairs:
      self._add(node, [(a, 1), (b, -1)])

  def same(self, node: Node, a: Any, b: Any, shift: int = 0) -> None:
    """Says so of every axis of `b` and the one of `a` that is `shift` further on."""
    rank = max(len(self.trees(a)) - shift, len(self.trees(b)))
    self.equal(node, *(((a, axis + shift), (b, axis)) for axis in range(rank)))

  def product(self, node: Node, result: Var | None, *factors: tuple[Var, int]) -> None:
    """Says that a result, or the number 1 if there is none, is a product of powers."""
    self._add(node, [*factors, *([] if result is None else [(result, -1)])], result)

  def _add(self, node: Node, weights: Iterable[tuple[Var, int]], result: Var | None = None) -> None:
    terms: dict[Var, int] = defaultdict(int)
    for (ref, axis), weight in weights:
      if axis in self.axes(ref):
        terms[(self.analysis.resolve(ref), axis)] += weight
    terms = {var: weight for var, weight in terms.items() if weight}
    if terms:
      self.rules.append(Rule(self.links.reason(node).text, terms, result))

  def solve(self, first: Var, what: str) -> dict[Var, int]:
    """Returns the exponents with 1 for `first`; what is not among them is 0.

    Where an equation leaves a choice, the nearest leaf takes the factor: one that multiplies scaled channels is
    divided, so that they come out as they were.

    Args:
      first: an axis that has the channels.
      what: the beginning of the error.

    Raises:
      UserError: an equation, or what the function takes or returns, contradicts them.
    """
    found = {first: 1}
    readers: dict[Var, list[Rule]] = defaultdict(list)
    for rule in self.rules:
      for var in rule.terms:
        readers[var].append(rule)

    def spread(todo: deque[Rule]) -> None:
      while todo:
        rule = todo.popleft()
        total, left = _sum(rule, found)
        if total and (not left or (len(left) == 1 and total % rule.terms[left[0]])):
          raise UserError(f"{what}: they cannot be followed through {rule.why}")
        if len(left) == 1 and len(rule.terms) > 1:
          found[left[0]] = -total // rule.terms[left[0]]
          todo.extend(readers[left[0]])

    spread(deque(readers[first]))
    fixed = [var for rule in self.rules if len(rule.terms) == 1 for var in rule.terms if var not in found]
    found |= dict.fromkeys(fixed, 0)
    spread(deque(rule for var in fixed for rule in readers[var]))
    while (choice := self._choice(found)) is not None:
      found[choice] = 0
      spread(deque(readers[choice]))
    return {var: value for var, value in found.items() if value}

  def _choice(self, found: Mapping[Var, int]) -> Var | None:
    """Returns what is not scaled of the first product that leaves a choice."""
    for rule in self.rules:
      total, left = _sum(rule, found)
      if total and len(left) > 1:
        factors = [var for var in left if var != rule.result]
        if rule.result in left and self._is_data(rule.result) and not self._is_data(factors[0]):
          return rule.result
        return next(filter(self._is_data, factors), factors[-1])
    return None

  def _is_data(self, var: Var) -> bool:
    return self.analysis.value(var[0]).data


def _sum(rule: Rule, found: Mapping[Var, int]) -> tuple[int, list[Var]]:
  """Returns the sum of a rule's known terms, and the others."""
  known = sum(weight * found[var] for var, weight in rule.terms.items() if var in found)
  return known, [var for var in rule.terms if var not in found]


def _unknown(found: Exponents, node: Node) -> None:
  found.zero(found.links.reason(node).text, *node.inputs, *node.outputs)


def _through(found: Exponents, node: Node) -> None:
  """Operands and results of calls are those inside (`Analysis.resolve`); so are the operands of branches."""
  for body in node.bodies:
    for ref, number in zip(body.outputs, node.outputs, strict=True):
      found.same(node, ref, number)


def _scan(found: Exponents, node: Node) -> None:
  body, (consts, carry, _) = node.bodies[0], node.split
  for place, (ref, number) in enumerate(zip(node.inputs, body.inputs, strict=True)):
    found.same(node, ref, number, int(place >= consts + carry))
  for place, (ref, number) in enumerate(zip(body.outputs, node.outputs, strict=True)):
    found.same(node, number, ref, int(place >= carry))
    if place < carry:
      found.same(node, ref, body.inputs[consts + place])
  for ref in (*node.inputs[consts + carry :], *node.outputs[carry:]):
    found.equal(node, ((ref, 0), (ref, -1)))


def _moved(found: Exponents, node: Node) -> None:
  """Every result is the operand at the same place, in another form of a floating-point number."""
  for ref, number in zip(node.inputs, node.outputs, strict=True):
    if all(is_float(found.analysis.value(one).aval) for one in (ref, number)):
      found.same(node, ref, number)
    else:
      _unknown(found, node)


def _sums(found: Exponents, node: Node) -> None:
  for ref in node.inputs[int(node.primitive == "select_n") :]:
    if not found.free(ref):
      found.same(node, ref, node.outputs[0])
  found.zero(found.links.reason(node).text, *node.inputs[: int(node.primitive == "select_n")])


def _compare(found: Exponents, node: Node) -> None:
  a, b = node.inputs
  if not found.free(a) and not found.free(b):
    found.same(node, a, b)
  found.zero(found.links.reason(node).text, node.outputs[0])


def _times(found: Exponents, node: Node) -> None:
  (out,), powers = node.outputs, (1, -1 if node.primitive == "div" else 1)
  for axis in range(len(found.trees(out))):
    factors = zip(node.inputs, powers, strict=True)
    found.product(node, (out, axis), *(((ref, axis), power) for ref, power in factors))


def _in_order(found: Exponents, node: Node) -> None:
  """The axes that have the channels keep their order, whatever axes come and go between them."""
  source, out = node.inputs[0], node.outputs[0]
  before, after = found.axes(source), found.axes(out)
  if len(before) == len(after) and not (node.primitive == "reshape" and node.params.get("dimensions") is not None):
    found.equal(node, *(((source, i), (out, j)) for i, j in zip(before, after, strict=True)))
  else:
    _unknown(found, node)


def _transpose(found: Exponents, node: Node) -> None:
  pairs = enumerate(node.params["permutation"])
  found.equal(node, *(((node.inputs[0], axis), (node.outputs[0], place)) for place, axis in pairs))


def _broadcast(found: Exponents, node: Node) -> None:
  source, out = node.inputs[0], node.outputs[0]
  if not found.free(out):
    dims = node.params["broadcast_dimensions"]
    found.equal(node, *(((source, axis), (out, place)) for axis, place in enumerate(dims)))
    found.equal(node, *(((source, -1), (out, axis)) for axis in found.axes(out) if axis not in dims))


def _reduced(found: Exponents, node: Node) -> None:
  source, out, gone = node.inputs[0], node.outputs[0], node.params["axes"]
  kept = [axis for axis in range(len(found.trees(source))) if axis not in gone]
  found.equal(node, *(((source, axis), (out, place)) for place, axis in enumerate(kept)))
  found.equal(node, *(((source, axis), (out, -1)) for axis in gone))


def _in_place(found: Exponents, node: Node) -> None:
  """Results and operands have parts of each other's axes, each at its place; padding is 0 or infinity."""
  if node.primitive == "pad" and not found.free(node.inputs[1]):
    return _unknown(found, node)
  reversed_axes = node.params.get("dimensions", ())
  for ref in node.inputs[:1] if node.primitive in ("pad", "dynamic_slice") else node.inputs:
    for out in node.outputs if not found.free(ref) else ():
      for axis, (one, other) in enumerate(zip(found.trees(ref), found.trees(out), strict=True)):
        a, b = set(units.units(one)), set(units.units(other))
        apart = found.channels in a ^ b and (a < b or b < a)  # the channels lie beside others, and are not taken
        if axis in reversed_axes:
          found.equal(node, ((ref, axis), (ref, -1)), ((out, axis), (out, -1)))
        elif not apart:
          found.equal(node, ((ref, axis), (out, axis)))
  return None


def _dot(found: Exponents, node: Node) -> None:
  (lhs, rhs), out = node.inputs, node.outputs[0]
  (contract_l, contract_r), (batch_l, batch_r) = node.params["dimension_numbers"]
  for i, j in zip(contract_l, contract_r, strict=True):
    found.product(node, None, ((lhs, i), 1), ((rhs, j), 1))
  for place, (i, j) in enumerate(zip(batch_l, batch_r, strict=True)):
    found.product(node, (out, place), ((lhs, i), 1), ((rhs, j), 1))
  place = len(batch_l)
  for ref, summed in ((lhs, (*contract_l, *batch_l)), (rhs, (*contract_r, *batch_r))):
    for axis in (axis for axis in range(len(found.trees(ref))) if axis not in summed):
      found.equal(node, ((ref, axis), (out, place)))
      place += 1


def _conv(found: Exponents, node: Node) -> None:
  """Channels are summed with the kernel's; those that are the groups themselves come out of it."""
  (lhs, rhs), out, spec = node.inputs, node.outputs[0], node.params["dimension_numbers"]
  read, kept, given = (lhs, spec.lhs_spec[1]), (rhs, spec.rhs_spec[0]), (out, spec.out_spec[1])
  if node.params["batch_group_count"] != 1:
    return _unknown(found, node)
  places = ((ref, axis) for ref, axes in zip((lhs, rhs, out), spec, strict=True) for axis in axes[2:])
  found.equal(node, *((var, (var[0], -1)) for var in places))
  if spec.rhs_spec[1] in found.axes(rhs) or given[1] not in found.axes(out):
    found.product(node, None, (read, 1), ((rhs, spec.rhs_spec[1]), 1))
    found.equal(node, (kept, given))
  elif read[1] in found.axes(lhs):
    found.product(node, given, (read, 1), (kept, 1))
  else:
    found.equal(node, (kept, given))
  return found.equal(node, ((lhs, spec.lhs_spec[0]), (out, spec.out_spec[0])))


Set = Callable[[Exponents, Node], None]


def _named(names: str, rule: Set) -> Iterable[tuple[str, Set]]:
  return ((name, rule) for name in names.split(" "))


_RULES: dict[str, Set] = {
  "conv_general_dilated": _conv,
  "broadcast_in_dim": _broadcast,
  "dot_general": _dot,
  "scan": _scan,
  "transpose": _transpose,
  **dict(_named("jit remat rule cond", _through)),
  **dict(_named("add add_any sub max min select_n", _sums)),
  **dict(_named("lt le gt ge eq ne", _compare)),
  **dict(_named("mul div", _times)),
  **dict(_named("reshape squeeze", _in_order)),
  **dict(_named("reduce_sum reduce_max reduce_min", _reduced)),
  **dict(_named("concatenate dynamic_slice pad reduce_window_max reduce_window_sum rev slice split", _in_place)),
  **dict(_named("neg abs convert_element_type reduce_precision stop_gradient copy copy_p name pvary pcast", _moved)),
  **dict(_named("optimization_barrier psum psum_invariant sharding_constraint reshard", _moved)),
}
