"""The type of a schedule, and the checks of its arguments."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array

from leanax.core import ranges
from leanax.core.errors import UserError


@dataclass(frozen=True)
class Number:
  """A number that is a function of the number of updates.

  Attributes:
    ends: the first and the last value; all others are between them.
    fn: `fn(step)`.
  """

  ends: tuple[float, float]
  fn: Callable[[Array], Array]

  def __call__(self, step: Array) -> Array:
    """Returns the number at an update."""
    return self.fn(step)

  def __str__(self) -> str:
    return f"a schedule from {self.ends[0]} to {self.ends[1]}"


def number(name: str, low: float, high: float, fn: Callable[[Array], Array], **updates: float) -> Number:
  """Returns a schedule after checking its arguments.

  Args:
    name: the schedule's name in error messages.
    low: the first value.
    high: the last value.
    fn: `fn(step)`, between them.
    **updates: the schedule's other arguments.

  Raises:
    UserError: an argument is not a finite number.
  """
  for key, value in {"low": low, "high": high, **updates}.items():
    ranges.check(f"schedule {name!r}: {key}", value, ranges.FINITE)
  return Number((low, high), fn)


def ramp(name: str, low: float, high: float, start: float, end: float, shape: Callable[[Array], Array]) -> Number:
  """Returns a schedule from `low` at update `start` to `high` at `end`, constant before and after.

  Args:
    name: the schedule's name in error messages.
    low: the value until `start`.
    high: the value from `end` on.
    start: the first update of the change.
    end: the last update of the change, after `start`.
    shape: `shape(fraction)`, from 0 at 0 to 1 at 1.

  Raises:
    UserError: an argument is not a finite number, or the end is not after the start.
  """

  def at(step: Array) -> Array:
    fraction = jnp.clip((jnp.asarray(step).astype(jnp.float32) - start) / (end - start), 0.0, 1.0)
    return low + (high - low) * shape(fraction)

  schedule = number(name, low, high, at, start=start, end=end)
  if not end > start:
    raise UserError(f"schedule {name!r} starts at update {start} and ends at {end}; expected it to end later")
  return schedule
