"""The same function with its scans written out: a file of layers in order has no loops."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from leanax.graph import versions

MOST = 64  # turns


def unrolled(fn: Callable[..., Any], most: int = MOST) -> Callable[..., Any]:
  """Returns `fn(*arrays) -> out` with each scan written out, turn by turn, in place of the loop.

  Scans inside jitted functions and rematerialised ones are found too; those inside branches, loops and custom rules
  stay, and so do scans of more than `most` turns. A function without scans is traced as it is.
  """

  def called(*args: Any) -> Any:
    closed, out = jax.make_jaxpr(fn, return_shape=True)(*args)
    inner = versions.open_jaxpr(closed)
    if not any(_holds(eqn, most) for eqn in inner.jaxpr.eqns):
      return jax.tree.unflatten(jax.tree.structure(out), jex.jaxpr_as_fun(closed)(*jax.tree.leaves(args)))
    return jax.tree.unflatten(jax.tree.structure(out), _run(inner, jax.tree.leaves(args), most))

  return called


def _holds(eqn: Any, most: int) -> bool:
  """Returns whether an equation is a scan to be written out, or is followed to one."""
  kept = versions.layout(eqn)
  if kept.form == "scan" and eqn.params["length"] <= most:
    return True
  return kept.form in ("jit", "remat") and any(_holds(one, most) for one in kept.inner[0].jaxpr.eqns)


def _run(inner: versions.Inner, values: Sequence[Any], most: int) -> list[Any]:
  """Returns what a jaxpr makes of values."""
  jaxpr = inner.jaxpr
  env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*inner.consts, *values), strict=True))

  def value(ref: Any) -> Any:
    return ref.val if isinstance(ref, jex.Literal) else env[ref]

  for eqn in jaxpr.eqns:
    read = tuple(map(value, eqn.invars))
    if not _holds(eqn, most):
      made = _bound(jaxpr, eqn, read)
    elif versions.layout(eqn).form == "scan":
      made = _turns(eqn, read, most)
    else:
      made = _run(versions.layout(eqn).inner[0], read, most)
    env.update(zip(eqn.outvars, made, strict=True))
  return [value(ref) for ref in jaxpr.outvars]


def _bound(jaxpr: Any, eqn: Any, values: Sequence[Any]) -> Sequence[Any]:
  """Returns what an equation makes of values; its line in the user's code and its layer stay known."""
  given = [ref for ref in eqn.invars if not isinstance(ref, jex.Literal)]
  about = jaxpr.debug_info._replace(arg_names=None, result_paths=None)
  alone = jaxpr.replace(eqns=[eqn], constvars=[], invars=given, outvars=list(eqn.outvars), debug_info=about)
  pairs = zip(eqn.invars, values, strict=True)
  return jex.jaxpr_as_fun(jex.ClosedJaxpr(alone, []))(*(x for ref, x in pairs if not isinstance(ref, jex.Literal)))


def _turns(eqn: Any, values: Sequence[Any], most: int) -> list[Any]:
  """Returns what a scan makes: the last carry, and what the turns make, stacked."""
  kept = versions.layout(eqn)
  (inner,), (consts, carry, _), length = kept.inner, kept.split, eqn.params["length"]
  state, scanned, made = list(values[consts : consts + carry]), values[consts + carry :], {}
  for turn in range(length)[:: -1 if eqn.params["reverse"] else 1]:
    slices = [jax.lax.index_in_dim(x, turn, keepdims=False) for x in scanned]
    out = _run(inner, [*values[:consts], *state, *slices], most)
    state, made[turn] = out[:carry], out[carry:]
  if not length:
    return [*state, *(jnp.zeros(var.aval.shape, var.aval.dtype) for var in eqn.outvars[carry:])]
  return [*state, *(jnp.stack(ys) for ys in zip(*(made[turn] for turn in range(length)), strict=True))]
