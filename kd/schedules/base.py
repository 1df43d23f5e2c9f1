"""What the schedules share."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from core.errors import UserError

Number = Callable[[Array], Array]


def share(name: str, start: float, end: float) -> Number:
  """How much of the way from update `start` to `end` is done, 0 to 1.

  Raises:
    UserError: it would end before it starts.
  """
  if not end > start:
    raise UserError(f"schedule {name!r} starts at update {start} and ends at {end}; expected it to end later")
  return lambda step: jnp.clip((jnp.asarray(step).astype(jnp.float32) - start) / (end - start), 0.0, 1.0)
