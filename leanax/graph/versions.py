"""The layout, by version of jax, of equations that hold other equations; the one file that knows.

A layout that is not listed here is refused by name: a parameter that is read wrongly gives silently wrong gradients,
so nothing is guessed. Tried with jax 0.10.2 and jax 0.12.0.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.extend import core as jex

from leanax.core.errors import UserError


class Inner(NamedTuple):
  """A jaxpr inside an equation, with the values of its constants."""

  jaxpr: Any
  consts: tuple[Any, ...]


class Layout(NamedTuple):
  """The contents of an equation: its form, its inner jaxprs, and for a scan or while how its operands are split.

  form: "jit", "remat", "rule" (custom_jvp and custom_vjp), "scan", "cond", "while", "opaque" (holds others, is never
    built anew; its jaxpr is given where it has the equation's own operands and results), or "" for a plain equation.
  split: scan (consts, carry, xs); while (consts of the condition, consts of the body, carry); else ().
  """

  form: str
  inner: tuple[Inner, ...] = ()
  split: tuple[int, ...] = ()


_JIT = {
  "jaxpr in_shardings out_shardings in_layouts out_layouts donated_invars ctx_mesh name keep_unused inline "
  "compiler_options_kvs"
}
_LAYOUTS: dict[str, tuple[str, set[str]]] = {
  "jit": ("jit", _JIT),
  "remat2": ("remat", {"jaxpr prevent_cse differentiated policy"}),
  "custom_jvp_call": ("rule", {"call_jaxpr jvp_jaxpr_fun num_consts symbolic_zeros"}),
  "custom_vjp_call": ("rule", {"call_jaxpr fwd_jaxpr_thunk num_consts bwd out_trees symbolic_zeros"}),
  "scan": ("scan", {"reverse length jaxpr num_consts num_carry unroll", "reverse length jaxpr ft_in ft_out unroll"}),
  "cond": ("cond", {"branches", "branches branches_platforms"}),
  "while": ("while", {"cond_nconsts cond_jaxpr body_nconsts body_jaxpr"}),
}
_INNER = {
  "jit": ("jaxpr",),
  "remat": ("jaxpr",),
  "rule": ("call_jaxpr",),
  "scan": ("jaxpr",),
  "cond": ("branches",),
  "while": ("cond_jaxpr", "body_jaxpr"),
}


def layout(eqn: Any) -> Layout:
  """Returns the layout of an equation.

  Raises:
    UserError: an equation that is followed has other parameters than in any known version of jax.
  """
  name, params = eqn.primitive.name, eqn.params
  if name not in _LAYOUTS:
    return _opaque(eqn)
  form, known = _LAYOUTS[name]
  if not any(set(params) == set(keys.split()) for keys in known):
    raise UserError(
      f"jax {jax.__version__}: the equation {name!r} has the parameters {', '.join(sorted(params))}, "
      f"expected {' or '.join(', '.join(sorted(keys.split())) for keys in known)}"
    )
  inner = tuple(_inner(j) for key in _INNER[form] for j in (params[key] if key == "branches" else (params[key],)))
  return Layout(form, inner, _split(form, params, len(eqn.invars)))


def _opaque(eqn: Any) -> Layout:
  inner = [_inner(jaxpr) for jaxpr in jex.jaxprs_in_params(eqn.params)]
  same = [one for one in inner if _arity(one.jaxpr) == (len(eqn.invars), len(eqn.outvars))]
  return Layout("opaque" if inner else "", tuple(same) if len(inner) == 1 else ())


def _arity(jaxpr: Any) -> tuple[int, int]:
  return len(jaxpr.invars), len(jaxpr.outvars)


def copies(params: Mapping[str, Any]) -> int:
  """Returns the number of devices that run the inside of an opaque equation (1 unless it maps over devices)."""
  axes = params.get("newly_manual_axes", params.get("manual_axes", ()))
  return math.prod(params["mesh"].shape[axis] for axis in axes)


def open_jaxpr(closed: Any) -> Inner:
  """Returns the jaxpr and the constants of what `jax.make_jaxpr` returned."""
  return _inner(closed)


def _inner(jaxpr: Any) -> Inner:
  # A plain Jaxpr of 0.10 has no constants; a ClosedJaxpr, and every Jaxpr of 0.12, has `jaxpr` and `consts`.
  if hasattr(jaxpr, "jaxpr"):
    return Inner(jaxpr.jaxpr, tuple(jaxpr.consts))
  if jaxpr.constvars:
    raise UserError(f"jax {jax.__version__}: an inner jaxpr has constants without values")
  return Inner(jaxpr, ())


def _split(form: str, params: Mapping[str, Any], operands: int) -> tuple[int, ...]:
  if form == "scan":
    if "num_consts" in params:
      consts, carry = params["num_consts"], params["num_carry"]
      split = (consts, carry, operands - consts - carry)
    else:
      split = tuple(len(list(part.vals)) for part in params["ft_in"].unpack())
  elif form == "while":
    conds, body = params["cond_nconsts"], params["body_nconsts"]
    split = (conds, body, operands - conds - body)
  else:
    return ()
  if len(split) != 3 or sum(split) != operands:
    raise UserError(f"jax {jax.__version__}: the operands of {form!r} are split as {split}, but there are {operands}")
  return split


def rebind(eqn: Any, inputs: tuple[Any, ...], changed: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
  """Returns the equation as it stands, or with some parameters changed, on other values; its custom rules are kept.

  The context manager restores what was set around the equation (compute type, metadata, how random bits are made).
  """
  with eqn.ctx.manager:
    out = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params({**eqn.params, **(changed or {})}))
  return tuple(out) if eqn.primitive.multiple_results else (out,)


def varying_axes(array: Any) -> Any:
  """Returns the device axes over which a value varies inside shard_map, to be compared with another's."""
  aval = jax.typeof(array)
  return aval.mat if hasattr(aval, "mat") else getattr(aval, "vma", None)
