"""The student's forward function in the one form that the train step calls:

forward(variables, qparams, quant_state, x, *, train, key, axis_name) -> (logits, model_state, quant_state)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

import kd
from leanax import graph
from leanax.core.errors import UserError

Forward = Callable[..., tuple[Array | kd.Outputs, Any, Any]]


def plain(apply: Callable[..., tuple[Array, Any]], preprocess: Callable[[Array], Array] | None = None) -> Forward:
  """Returns the forward function of a model, of floats or of simulated integers.

  Args:
    apply: `apply(variables, x, *, train, key) -> (logits, model_state)`, such as `graph.Net.apply`. The variables of a
      quantized net (`quant.post_training`) hold its grids.
    preprocess: from a batch's images to the model's input.
  """

  def forward(variables, qparams, quant_state, x, *, train, key, axis_name):
    del axis_name
    grids = {"qparams": qparams, "quant_state": quant_state} if quant_state else {}
    given = apply({**variables, **grids}, x if preprocess is None else preprocess(x), train=train, key=key)
    if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[1], Mapping):
      raise UserError(
        f"the model's apply gives a {type(given).__name__}; expected a pair, its logits and its other collections: "
        "{'batch_stats': ...}, or {} of a model without"
      )
    logits, state = given
    return logits, {name: tree for name, tree in state.items() if name not in grids}, quant_state

  return forward


def tapped(forward: Forward, names: Sequence[str]) -> Forward:
  """Returns a forward function whose logits are `kd.Outputs` with the named intermediates (`graph.taps`)."""
  if not names:
    return forward

  def run(variables, qparams, quant_state, x, *, train, key, axis_name):
    def fn(variables, x):  # the rest is closed over: an activation is named by the parameters that made it
      return forward(variables, qparams, quant_state, x, train=train, key=key, axis_name=axis_name)

    (logits, model_state, quant_state), found = graph.taps(fn, names)(variables, x)
    return kd.Outputs(logits, found), model_state, quant_state

  return run


def bfloat16(apply: Callable[..., tuple[Array, Any]]) -> Callable[..., tuple[Array, Any]]:
  """Returns the model computed in bfloat16 from float32 masters; gradients and statistics have the masters' dtype.

  Statistics are handed to the model as they are: a running average with a small step does not move in bfloat16.
  """

  def cast(tree: Any) -> Any:
    return jax.tree.map(lambda a: a.astype(jnp.bfloat16) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)

  def wide(a: Array) -> Array:
    return a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a

  def apply16(variables, x, **kwargs):
    with jax.numpy_dtype_promotion("standard"):  # float32 statistics meet bfloat16 features, in flax's batch norm too
      logits, model_state = apply({**variables, "params": cast(variables["params"])}, cast(x), **kwargs)
    before = {name: tree for name, tree in variables.items() if name != "params"}
    return jax.tree.map(wide, logits), jax.tree.map(lambda new, old: new.astype(old.dtype), model_state, before)

  return apply16
