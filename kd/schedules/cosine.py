"""Half a cosine between two numbers. No paper."""

import jax.numpy as jnp

from kd.schedules.base import Number, share


def cosine(low: float, high: float, start: float, end: float) -> Number:
  """From `low` at update `start` to `high` at `end`, slow at both ends, constant before and after."""
  done = share("cosine", start, end)
  return lambda step: low + (high - low) * 0.5 * (1 - jnp.cos(jnp.pi * done(step)))
