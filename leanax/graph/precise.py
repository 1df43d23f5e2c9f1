"""The same function with every product at the highest precision: what is compared with a reference is computed so."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core as jex

PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general")


def highest_precision(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Returns `fn(*arrays) -> out` with each dot and convolution at the highest precision, whatever it asks for.

  An accelerator multiplies float32 numbers in fewer bits by default. Those inside scans, branches, loops and custom
  rules are found too; the derivative of a custom rule stays as it is, so that it is for inference.
  """

  def precise(*args: Any) -> Any:
    with jax.default_matmul_precision("highest"):
      closed, out = jax.make_jaxpr(fn, return_shape=True)(*args)
    leaves = jex.jaxpr_as_fun(_raised(closed))(*jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(out), leaves)

  return precise


def _raised(value: Any) -> Any:
  """Returns a jaxpr, or the parameter of an equation, with the precision of every product in it raised."""
  if isinstance(value, jex.ClosedJaxpr) and hasattr(value, "jaxpr") and value.jaxpr is not value:
    return value.replace(jaxpr=_raised(value.jaxpr))
  if isinstance(value, jex.Jaxpr):
    return value.replace(eqns=[_raised_equation(eqn) for eqn in value.eqns])
  if isinstance(value, tuple | list):
    return type(value)(_raised(part) for part in value) if type(value) in (tuple, list) else value
  return value


def _raised_equation(eqn: Any) -> Any:
  params = {key: _raised(value) for key, value in eqn.params.items()}
  if eqn.primitive.name in PRODUCTS:
    params["precision"] = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
  return eqn.replace(params=params)
