"""Exponential moving averages of parameters, scales and batch statistics."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def average(ema: Any, values: dict[str, Any], decay: float | None, *, step: Array) -> Any:
  """Returns the averages after an update: e <- d e + (1 - d) x, with d = min(decay, (1 + step) / (10 + step)).

  The smaller decay of the first steps forgets the start, as in TensorFlow's ExponentialMovingAverage. Integer leaves
  are copied. An entry that the optimizer pruned is zero in the average too.

  Args:
    ema: {"params", "qparams", "model_state", ...} or None.
    values: the same trees after the update, and possibly more.
    decay: None keeps the averages as they are.
    step: number of the update.
  """
  if ema is None or decay is None:
    return ema
  now = step.astype(jnp.float32)
  d = jnp.minimum(decay, (1 + now) / (10 + now))

  def move(e: Array, x: Array) -> Array:
    return e + (1 - d).astype(x.dtype) * (x - e) if jnp.issubdtype(x.dtype, jnp.floating) else x

  moved = jax.tree.map(move, ema, {name: values[name] for name in ema})
  # Only a pruned weight is exactly 0 while the average of that weight is not.
  return moved | {"params": jax.tree.map(lambda e, x: jnp.where(x == 0, x, e), moved["params"], values["params"])}
