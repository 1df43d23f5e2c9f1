"""What the schedules share."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array

from leanax.core import ranges
from leanax.core.errors import UserError


@dataclass(frozen=True)
class Number:
  """A number at each update.

  Attributes:
    ends: the first and the last; all others are between them.
    fn: `fn(step)`.
  """

  ends: tuple[float, float]
  fn: Callable[[Array], Array]

  def __call__(self, step: Array) -> Array:
    """The number at an update."""
    return self.fn(step)

  def __str__(self) -> str:
    return f"a schedule from {self.ends[0]} to {self.ends[1]}"


def number(name: str, low: float, high: float, fn: Callable[[Array], Array], **updates: float) -> Number:
  """A schedule, once its numbers are some.

  Args:
    name: how errors call it.
    low: where it begins.
    high: where it ends.
    fn: `fn(step)`, between them.
    **updates: the schedule's other arguments.

  Raises:
    UserError: one of them is not a finite number.
  """
  for key, value in {"low": low, "high": high, **updates}.items():
    ranges.check(f"schedule {name!r}: {key}", value, ranges.FINITE)
  return Number((low, high), fn)


def ramp(name: str, low: float, high: float, start: float, end: float, shape: Callable[[Array], Array]) -> Number:
  """From `low` at update `start` to `high` at `end`, constant before and after.

  Args:
    name: how errors call it.
    low: see above.
    high: see above.
    start: see above.
    end: see above.
    shape: how much of the change is done, 0 to 1, at a share of the way, 0 to 1.

  Raises:
    UserError: one is not a finite number, or it would end before it starts.
  """

  def at(step: Array) -> Array:
    share = jnp.clip((jnp.asarray(step).astype(jnp.float32) - start) / (end - start), 0.0, 1.0)
    return low + (high - low) * shape(share)

  made = number(name, low, high, at, start=start, end=end)
  if not end > start:
    raise UserError(f"schedule {name!r} starts at update {start} and ends at {end}; expected it to end later")
  return made
