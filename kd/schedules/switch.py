"""A step from one number to another. No paper."""

import jax.numpy as jnp

from kd.schedules.base import Number, number


def switch(low: float, high: float, at: float) -> Number:
  """Returns `low` before update `at`, `high` from then on."""
  return number(
    "switch", low, high, lambda step: jnp.where(jnp.asarray(step) < at, jnp.float32(low), jnp.float32(high)), at=at
  )
