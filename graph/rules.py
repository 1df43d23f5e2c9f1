"""Custom differentiation rules built anew from the original ones.

The rule is found by differentiating the original call, `jax.jvp` or `jax.vjp`, at its own shapes, and not by reading
the equation's parameters, whose meaning changes with jax's versions. What comes out is a program like any other, and
is evaluated again; `jax.custom_jvp` and `jax.custom_vjp` make a rule of it.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from graph import versions
from graph.ops import is_float
from graph.program import Node, read, touched
from graph.sites import Analysis

if TYPE_CHECKING:
  from graph.emit import Emitter


def rebuild(emitter: "Emitter", node: Node, values: Sequence[Any]) -> Sequence[Any]:
  """The results of a custom_jvp or custom_vjp call whose body and rule are evaluated again, equation by equation."""
  body = node.bodies[0]

  def primal(*xs: Any) -> Any:
    return tuple(emitter.run(body, xs, {})[0])

  def original(*xs: Any) -> Any:
    return tuple(versions.rebind(node.eqn, xs))

  build = _jvp if node.primitive.startswith("custom_jvp") else _vjp
  return build(emitter, primal, original, [is_float(emitter.analysis.program.avals[n]) for n in body.inputs])(*values)


def again(emitter: "Emitter", fn: Callable[..., Any], *args: Any) -> Any:
  """`fn(*args)`, traced and evaluated again with every equation taken apart."""
  program = read(lambda _, *xs: fn(*xs), (), *args)
  every = touched(program, range(len(program.nodes)))
  inner = type(emitter)(Analysis(program), everything=True, touched=every)
  return jax.tree.unflatten(program.out_tree, inner.run(program.body, jax.tree.leaves(args), {})[0])


def _merge(floats: Sequence[bool], moving: Sequence[Any], still: Sequence[Any]) -> list[Any]:
  a, b = iter(moving), iter(still)
  return [next(a) if f else next(b) for f in floats]


def _split(floats: Sequence[bool], xs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
  return [x for x, f in zip(xs, floats, strict=True) if f], [x for x, f in zip(xs, floats, strict=True) if not f]


def _zero(x: Any) -> Any:
  """The tangent of a value that has none."""
  return np.zeros(np.shape(x), jax.dtypes.float0)


def _jvp(emitter: "Emitter", primal: Any, original: Any, floats: Sequence[bool]) -> Callable[..., Any]:
  def rule(primals: Any, tangents: Any) -> Any:
    moving, still = _split(floats, primals)

    def both(moving: Any, still: Any, tangents: Any) -> Any:
      outs, dots = jax.jvp(lambda *m: original(*_merge(floats, m, still)), tuple(moving), tuple(tangents))
      return outs, [dot for out, dot in zip(outs, dots, strict=True) if is_float(out)]

    outs, dots = again(emitter, both, moving, still, _split(floats, tangents)[0])
    given = iter(dots)
    return outs, tuple(next(given) if is_float(out) else _zero(out) for out in outs)

  fn = jax.custom_jvp(primal)
  fn.defjvp(rule)
  return fn


def _vjp(emitter: "Emitter", primal: Any, original: Any, floats: Sequence[bool]) -> Callable[..., Any]:
  trees: list[Any] = []

  def forward(*xs: Any) -> Any:
    def both(moving: Any, still: Any) -> Any:
      outs, pull = jax.vjp(lambda *m: original(*_merge(floats, m, still)), *moving)
      leaves, tree = jax.tree.flatten(pull)
      trees.append(tree)
      return outs, leaves

    outs, leaves = again(emitter, both, *_split(floats, xs))
    return outs, (leaves, _split(floats, xs)[1])

  def backward(residuals: Any, cotangents: Any) -> Any:
    leaves, still = residuals
    tree = trees[-1]
    moving = again(emitter, lambda leaves, cts: jax.tree.unflatten(tree, leaves)(cts), leaves, cotangents)
    return tuple(_merge(floats, moving, [_zero(x) for x in still]))

  fn = jax.custom_vjp(primal)
  fn.defvjp(forward, backward)
  return fn
