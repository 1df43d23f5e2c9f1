"""Min-max observer: the lowest and the highest value of all batches (Jacob et al., arXiv:1712.05877, section 3)."""

import jax
import jax.numpy as jnp

from quant.observers.base import Observer, Range, first_or, measure, of_range


def min_max() -> Observer:
  """The range that holds everything seen; the mean magnitude is the plain mean over the batches."""
  return of_range(update)


def update(state: Range, x: jax.Array, axis_name: str | None = None) -> Range:
  """The range with one more batch."""
  batch = measure(x, axis_name)
  share = 1 / (state.count + 1).astype(jnp.float32)
  later = Range(
    jnp.minimum(state.low, batch.low),
    jnp.maximum(state.high, batch.high),
    state.magnitude + share * (batch.magnitude - state.magnitude),
    state.count,
  )
  return first_or(state, batch, later)
