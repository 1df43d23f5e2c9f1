"""Half a cosine between two numbers. No paper."""

import jax.numpy as jnp

from kd.schedules.base import Number, ramp


def cosine(low: float, high: float, start: float, end: float) -> Number:
  """From `low` at update `start` to `high` at `end`, slow at both ends, constant before and after."""
  return ramp("cosine", low, high, start, end, lambda share: 0.5 * (1 - jnp.cos(jnp.pi * share)))
