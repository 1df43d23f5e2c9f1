"""Finds statistics that a model takes over its own device's share of the batch, in the trace, and names where.

A mean over the batch inside a model (batch norm without an axis name, a centred feature) is another number when the
batch is split over devices. The function is traced with a batch of a large prime size: an axis whose length is a
multiple of it comes from the batch. An operation that mixes along such an axis is a suspect until a collective takes
its result; a suspect that reaches an output is found. Nothing is run.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from leanax.core.errors import UserError
from leanax.graph import versions

PRIME = 1009
COLLECTIVES = ("psum", "psum_invariant", "pmax", "pmin", "all_gather", "all_gather_invariant", "pmean", "psum2")
# The axes that an operation mixes, by the name of the parameter that holds them.
AXES = {
  "reduce_sum": "axes", "reduce_max": "axes", "reduce_min": "axes", "reduce_prod": "axes", "reduce_and": "axes",
  "reduce_or": "axes", "argmax": "axes", "argmin": "axes", "cumsum": "axis", "cumprod": "axis", "cummax": "axis",
  "cummin": "axis", "cumlogsumexp": "axis", "sort": "dimension", "rev": "dimensions", "reduce": "dimensions",
}  # fmt: skip

Found = frozenset[str]


def find_local_statistics(fn: Callable[..., Any], *args: Any, images: int = -1) -> list[str]:
  """Returns the places, by the model's scopes, where `fn` mixes examples of one device without a collective.

  Args:
    fn: traced as it is called, inside the devices' axis if it names one.
    *args: the arguments of `fn`; shapes are enough.
    images: the index of the one whose leading axis is the batch.
  """
  shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), list(args))
  shapes[images] = jax.tree.map(lambda a: jax.ShapeDtypeStruct((PRIME, *a.shape[1:]), a.dtype), shapes[images])
  closed = jax.make_jaxpr(fn)(*shapes)
  found = frozenset[str]().union(*_follow(closed.jaxpr, [frozenset()] * len(closed.jaxpr.invars), ""))
  return sorted(found)


def refuse_local_statistics(fn: Callable[..., Any], *args: Any) -> None:
  """Raises a UserError that names the places which `find_local_statistics` finds."""
  found = find_local_statistics(fn, *args)
  if found:
    raise UserError(
      f"the model takes statistics over each device's part of the batch at {', '.join(found)}; give its batch norm the "
      "axis name, use the mode 'jit' or 'mesh', or allow it with per_device_statistics=True"
    )


def _follow(jaxpr: Any, given: Sequence[Found], scope: str) -> list[Found]:
  """Returns the suspects that reach each output of a jaxpr, from those of its inputs."""
  known = dict(zip(jaxpr.invars, given, strict=True))

  def of(atom: Any) -> Found:
    return frozenset() if isinstance(atom, jex.Literal) else known.get(atom, frozenset())

  for eqn in jaxpr.eqns:
    inputs = [of(atom) for atom in eqn.invars]
    place = "/".join(part for part in (scope, str(eqn.source_info.name_stack)) if part)
    inner = list(_jaxprs(eqn.params))
    if eqn.primitive.name in COLLECTIVES:
      outputs = [frozenset[str]()] * len(eqn.outvars)
    elif inner:
      outputs = _follow_inner(eqn, inner, inputs, place)
    else:
      here = {place or "the top of the model"} if _mixes(eqn) else set()
      outputs = [frozenset(here).union(*inputs)] * len(eqn.outvars)
    known.update(zip(eqn.outvars, outputs, strict=True))
  return [of(atom) for atom in jaxpr.outvars]


def _follow_inner(eqn: Any, inner: list[Any], inputs: list[Found], place: str) -> list[Found]:
  """Follows an operation that holds functions: input by input where they line up, all mixed where not."""
  everything = frozenset[str]().union(*inputs)
  name = eqn.primitive.name
  if name == "cond":
    inputs = inputs[1:]
  if name == "scan":  # a carry reaches the next step
    consts, carried, _ = versions.layout(eqn).split
    carry = slice(consts, consts + carried)
    while True:
      outputs = _follow(inner[0], inputs, place)
      grown = [a | b for a, b in zip(inputs[carry], outputs[:carried])]
      if grown == inputs[carry]:
        return outputs
      inputs[carry] = grown
  if name != "while" and all(len(j.invars) == len(inputs) and len(j.outvars) == len(eqn.outvars) for j in inner):
    branches = [_follow(j, inputs, place) for j in inner]
    return [frozenset[str]().union(*found) for found in zip(*branches)]
  found = [o for j in inner for o in _follow(j, [everything] * len(j.invars), place)]
  return [everything.union(*found)] * len(eqn.outvars)


def _jaxprs(params: dict[str, Any]) -> Any:
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(item, (jex.Jaxpr, jex.ClosedJaxpr)):
        yield item.jaxpr if isinstance(item, jex.ClosedJaxpr) else item


def _mixes(eqn: Any) -> bool:
  """Returns whether an operation combines entries along an axis that comes from the batch."""
  name, params = eqn.primitive.name, eqn.params
  shapes = [getattr(atom.aval, "shape", ()) for atom in eqn.invars]

  def batch(shape: Sequence[int], axes: Any) -> bool:
    axes = (axes,) if isinstance(axes, int) else axes
    return any(shape[a] and shape[a] % PRIME == 0 for a in axes)

  if name == "dot_general":
    (left, right), _ = params["dimension_numbers"]
    return batch(shapes[0], left) or batch(shapes[1], right)
  if name == "conv_general_dilated":
    numbers = params["dimension_numbers"]
    return batch(shapes[0], numbers.lhs_spec[1:]) or batch(shapes[1], numbers.rhs_spec)
  if name.startswith(("reduce_window", "select_and_scatter")):
    window = params.get("window_dimensions", ())
    return batch(shapes[-1], [a for a, size in enumerate(window) if size > 1])
  if name in AXES:
    return batch(shapes[0], params[AXES[name]])
  return False
