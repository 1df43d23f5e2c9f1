"""Nodes that hold others, built anew with jax's public constructors around their evaluated bodies."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from leanax.core.errors import UserError
from leanax.graph import rules, versions
from leanax.graph.evaluator import Evaluator, Extras
from leanax.graph.program import Missing, Node

Result = tuple[Sequence[Any], dict[str, Any]]


def _remat(emitter: Evaluator, node: Node, values: list[Any], extras: Extras) -> Result:
  if node.params["differentiated"]:
    emitter.guard(node, [(node.bodies[0], values)], extras)
    return versions.rebind(node.eqn, tuple(values)), {}
  there = [not isinstance(v, Missing) for v in values]
  lost: dict[int, Missing] = {}

  def inside(*present: Any) -> Any:
    given = iter(present)
    inputs = [next(given) if here else value for here, value in zip(there, values, strict=True)]
    outputs, written = emitter.run(node.bodies[0], inputs, extras)
    lost.update({place: value for place, value in enumerate(outputs) if isinstance(value, Missing)})
    return [value for value in outputs if not isinstance(value, Missing)], written

  policy, prevent = node.params["policy"], node.params["prevent_cse"]
  present = [value for value, here in zip(values, there, strict=True) if here]
  found, written = jax.checkpoint(inside, prevent_cse=prevent, policy=policy)(*present)
  rest = iter(found)
  return [lost[place] if place in lost else next(rest) for place in range(len(node.outputs))], written


def _scan(emitter: Evaluator, node: Node, values: list[Any], extras: Extras) -> Result:
  """The extras of what is inside go in and out stacked along the scanned axis; all others are read only."""
  body, (consts, carry, _) = node.bodies[0], node.split
  names = emitter.analysis.scan_names.get(node.index, set())
  layers = {key: value for key, value in extras.items() if key in names}
  outer = {key: value for key, value in extras.items() if key not in names}

  def step(carried: Any, slices: Any) -> Any:
    xs, layer = slices
    outputs, written = emitter.run(body, [*values[:consts], *carried, *xs], {**outer, **layer})
    foreign = sorted(set(written) - names)
    if foreign:
      raise UserError(f"the extra {foreign[0]!r} was written inside a scan, whose names are {', '.join(sorted(names))}")
    return tuple(outputs[:carry]), (tuple(outputs[carry:]), {**layer, **written})

  first = tuple(
    _typed(value, emitter.analysis.program.avals[number])
    for value, number in zip(values[consts : consts + carry], body.inputs[consts : consts + carry], strict=True)
  )
  p = node.params
  scanned = tuple(values[consts + carry :])
  last, (ys, state) = jax.lax.scan(
    step, first, (scanned, layers), length=p["length"], reverse=p["reverse"], unroll=p["unroll"]
  )
  return [*last, *ys], state


def _typed(value: Any, aval: Any) -> Any:
  """Returns a literal as an array of the type that the carry has."""
  return value if hasattr(value, "aval") else jnp.asarray(value, aval.dtype)


def _cond(emitter: Evaluator, node: Node, values: list[Any], extras: Extras) -> Result:
  """Both branches return the same extras: a new entry of the branch that did not run is zeros."""
  index, *operands = values
  operands = [
    _typed(v, emitter.analysis.program.avals[n]) for v, n in zip(operands, node.bodies[0].inputs, strict=True)
  ]
  wrote = [jax.eval_shape(lambda *xs, b=b: emitter.run(b, xs, extras)[1], *operands) for b in node.bodies]
  shapes = {key: shape for one in wrote for key, shape in one.items()}

  def branch(body: Any) -> Any:
    def inside(*xs: Any) -> Any:
      outputs, written = emitter.run(body, xs, extras)
      state = {key: written[key] if key in written else _kept(extras, key, shapes[key]) for key in shapes}
      return tuple(outputs), state

    return inside

  branches = [branch(body) for body in node.bodies]
  if "branches_platforms" in node.params:  # which one runs is known when the program is lowered
    names = zip(node.params["branches_platforms"], branches, strict=True)
    chosen = {name: inside for platforms, inside in names for name in platforms or ("default",)}
    return jax.lax.platform_dependent(*operands, **chosen)
  if len(branches) == 2:
    return jax.lax.cond(jax.lax.ne(index, jnp.zeros_like(index)), branches[1], branches[0], *operands)
  return jax.lax.switch(index, branches, *operands)


def _kept(extras: Extras, key: str, shape: Any) -> Any:
  if key in extras:
    return jax.tree.map(lambda old, s: jnp.asarray(old, s.dtype), extras[key], shape)
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)


def _while(emitter: Evaluator, node: Node, values: list[Any], extras: Extras) -> Result:
  conds, consts, _ = node.split
  test, body = node.bodies
  for_test, for_body, carry = values[:conds], values[conds : conds + consts], values[conds + consts :]
  emitter.guard(node, [(test, [*for_test, *carry]), (body, [*for_body, *carry])], extras)
  if not emitter.everything:
    return versions.rebind(node.eqn, tuple(values)), {}
  avals = [emitter.analysis.program.avals[n] for n in body.inputs[consts:]]
  first = tuple(_typed(v, a) for v, a in zip(carry, avals, strict=True))
  return jax.lax.while_loop(
    lambda carried: emitter.run(test, [*for_test, *carried], extras)[0][0],
    lambda carried: tuple(emitter.run(body, [*for_body, *carried], extras)[0]),
    first,
  ), {}


def _rule(emitter: Evaluator, node: Node, values: list[Any], extras: Extras) -> Result:
  emitter.guard(node, [(node.bodies[0], values)], extras)
  if not emitter.everything:
    return versions.rebind(node.eqn, tuple(values)), {}
  return rules.rebuild(emitter, node, values), {}


def _opaque(emitter: Evaluator, node: Node, values: list[Any], extras: Extras) -> Result:
  emitter.guard_each(node, extras)
  return versions.rebind(node.eqn, tuple(values)), {}


FORMS = {"remat": _remat, "scan": _scan, "cond": _cond, "while": _while, "rule": _rule, "opaque": _opaque}
