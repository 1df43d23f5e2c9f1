"""A half cosine between two numbers. No paper."""

import jax.numpy as jnp

from kd.schedules.base import Number, ramp


def cosine(low: float, high: float, start: float, end: float) -> Number:
  """Returns a half cosine from `low` at update `start` to `high` at `end`, constant before and after."""
  return ramp("cosine", low, high, start, end, lambda fraction: 0.5 * (1 - jnp.cos(jnp.pi * fraction)))
