"""Custom differentiation rules built anew from the original ones.

The rule is found by differentiating the original call, `jax.jvp` or `jax.vjp`, at its own shapes, and not by reading
the equation's parameters, whose meaning changes with jax's versions. What comes out is a program like any other, and
is evaluated again; `jax.custom_jvp` and `jax.custom_vjp` make a rule of it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core as jex

from leanax.graph import versions
from leanax.graph.evaluator import Evaluator
from leanax.graph.ops import is_float
from leanax.graph.program import Node, read
from leanax.graph.sites import Analysis


class Given(NamedTuple):
  """Values with their original shapes, and with what was cut from each axis."""

  values: list[Any]
  structs: list[Any]
  cuts: list[Any]

  def pick(self, which: Sequence[bool]) -> "Given":
    return Given(*([x for x, w in zip(part, which, strict=True) if w] for part in self))


def rebuild(emitter: Evaluator, node: Node, values: Sequence[Any]) -> Sequence[Any]:
  """Returns the results of a custom_jvp or custom_vjp call, its body and rule evaluated again, equation by equation."""
  body, avals, sizes = node.bodies[0], emitter.analysis.program.avals, emitter.sizes
  floats = [is_float(avals[n]) for n in body.inputs]

  def primal(*xs: Any) -> Any:
    return tuple(emitter.run(body, xs, {})[0])

  def original(moving: Sequence[Any], still: Sequence[Any]) -> Any:
    return tuple(versions.rebind(node.eqn, tuple(_merge(floats, moving, still))))

  def given(xs: Sequence[Any], numbers: Sequence[int]) -> Given:
    """Under the original shapes the values themselves are traced, which know the mesh axes they vary over."""
    if sizes is None:
      return Given(list(xs), list(xs), [()] * len(xs))
    structs = [jax.ShapeDtypeStruct(avals[n].shape, avals[n].dtype) for n in numbers]
    return Given(list(xs), structs, [sizes.cut(n) for n in numbers])

  build = _jvp if node.primitive.startswith("custom_jvp") else _vjp
  return build(emitter, primal, original, given, floats, node)(*values)


def again(emitter: Evaluator, fn: Callable[..., Any], *args: Given) -> tuple[Any, Given]:
  """Returns `fn` of the lists of values, traced at their original shapes and evaluated on what is left of them.

  Returns:
    What fn returned, and the same as flat values with their original shapes and cuts.
  """
  program = read(lambda _, *xs: fn(*xs), (), *(arg.structs for arg in args))
  analysis = Analysis(program)
  values = [v for arg in args for v in arg.values]
  numbers = program.body.inputs
  cuts = zip(numbers, (c for arg in args for c in arg.cuts), strict=True)
  seeds = {(n, i): ("a custom rule", keep) for n, cut in cuts for i, keep in enumerate(cut) if keep is not None}
  if emitter.sizes is None:
    inner = emitter.unedited(analysis)
  else:
    sizes = emitter.sizes.inside(analysis, seeds)
    inner = sizes.emitter()
  out = inner.run(program.body, values, {})[0]
  avals: list[Any] = [ref.aval if isinstance(ref, jex.Literal) else program.avals[ref] for ref in program.body.outputs]
  structs = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
  kept = [() if inner.sizes is None else inner.sizes.cut(ref) for ref in program.body.outputs]
  return jax.tree.unflatten(program.out_tree, out), Given(
    out, [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in structs], kept
  )


def _merge(floats: Sequence[bool], moving: Sequence[Any], still: Sequence[Any]) -> list[Any]:
  a, b = iter(moving), iter(still)
  return [next(a) if f else next(b) for f in floats]


def _zero(x: Any) -> Any:
  """Returns the tangent of a value that has none."""
  return np.zeros(np.shape(x), jax.dtypes.float0)


def _jvp(emitter: Evaluator, primal: Any, original: Any, given: Any, floats: list[bool], node: Node) -> Any:
  numbers, still_ones = node.bodies[0].inputs, [not f for f in floats]

  def rule(primals: Any, tangents: Any) -> Any:
    def both(moving: Any, still: Any, tangents: Any) -> Any:
      outs, dots = jax.jvp(lambda *m: original(m, still), tuple(moving), tuple(tangents))
      return outs, [dot for out, dot in zip(outs, dots, strict=True) if is_float(out)]

    xs = given(primals, numbers)
    moving = xs.pick(floats)
    dots = [t for t, f in zip(tangents, floats, strict=True) if f]
    structs = dots if emitter.sizes is None else moving.structs
    (outs, dots), _ = again(emitter, both, moving, xs.pick(still_ones), Given(dots, structs, moving.cuts))
    rest = iter(dots)
    return outs, tuple(next(rest) if is_float(out) else _zero(out) for out in outs)

  fn = jax.custom_jvp(primal)
  fn.defjvp(rule)
  return fn


def _vjp(emitter: Evaluator, primal: Any, original: Any, given: Any, floats: list[bool], node: Node) -> Any:
  numbers, still_ones = node.bodies[0].inputs, [not f for f in floats]
  traced: list[tuple[Any, Given]] = []  # how the residuals are put together again, and what was cut from them

  def forward(*xs: Any) -> Any:
    trees: list[Any] = []

    def both(moving: Any, still: Any) -> Any:
      outs, pull = jax.vjp(lambda *m: original(m, still), *moving)
      leaves, tree = jax.tree.flatten(pull)
      trees.append(tree)
      return outs, leaves

    all_ones = given(xs, numbers)
    (outs, leaves), flat = again(emitter, both, all_ones.pick(floats), all_ones.pick(still_ones))
    traced.append((trees[-1], Given(*(part[len(outs) :] for part in flat))))
    return outs, (leaves, all_ones.pick(still_ones).values)

  def backward(residuals: Any, cotangents: Any) -> Any:
    leaves, still = residuals
    tree, before = traced[-1]
    structs = leaves if emitter.sizes is None else before.structs

    def pulled(leaves: Any, cotangents: Any) -> Any:
      return jax.tree.unflatten(tree, leaves)(tuple(cotangents))

    moving, _ = again(emitter, pulled, Given(leaves, structs, before.cuts), given(cotangents, node.outputs))
    return tuple(_merge(floats, moving, [_zero(x) for x in still]))

  fn = jax.custom_vjp(primal)
  fn.defvjp(forward, backward)
  return fn
