"""The kind of method that gathers a tensor's range, and how one batch is measured, on one device as on many."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from leanax.core import axis


class Range(NamedTuple):
  """What was seen of a tensor; every field float32 of shape () but `count`.

  Attributes:
    low: the lowest value, as the observer sums batches up.
    high: the highest value, likewise.
    magnitude: the mean magnitude, from which LSQ starts.
    count: int32, how many batches were seen; 0 means that the other fields hold nothing yet, -n that batch n was the
      first that held NaN or infinity: the other fields are NaN from then on.
  """

  low: jax.Array
  high: jax.Array
  magnitude: jax.Array
  count: jax.Array


@dataclasses.dataclass(frozen=True)
class Observer:
  """How batches of a tensor become the range of its grid.

  The state is a NamedTuple of arrays, constant in size and all zero where nothing was seen; its `count` is that of
  `Range`.

  Attributes:
    update: (state, x, axis_name) -> the state after one more batch, of which each device of `axis_name` has an equal
      share. No gradient passes.
    empty: () -> the state in which nothing was seen.
    range: state -> `Range`: the low and high end for the grid, and the mean magnitude.
  """

  update: Callable[[Any, jax.Array, str | None], Any]
  empty: Callable[[], Any]
  range: Callable[[Any], Range]


def of_range(update: Callable[[Range, jax.Array, str | None], Range]) -> Observer:
  """The observer whose state is the range itself."""
  return Observer(update, empty, lambda state: state)


def empty() -> Range:
  """The range of a tensor that was never seen."""
  zero = jnp.zeros((), jnp.float32)
  return Range(zero, zero, zero, jnp.zeros((), jnp.int32))


def measure(x: jax.Array, axis_name: str | None = None) -> Range:
  """The range of one batch over all the devices of `axis_name`, each with an equal share of it. No gradient passes."""
  x = jax.lax.stop_gradient(x).astype(jnp.float32)
  low, high = axis.pmin(jnp.min(x), axis_name), axis.pmax(jnp.max(x), axis_name)
  magnitude = axis.pmean(jnp.mean(jnp.abs(x)), axis_name)
  bad = axis.pmax(jnp.any(~jnp.isfinite(x)).astype(jnp.int32), axis_name) > 0
  low, high, magnitude = (jnp.where(bad, jnp.float32(jnp.nan), value) for value in (low, high, magnitude))
  return Range(low, high, magnitude, jnp.where(bad, jnp.int32(-1), jnp.int32(1)))


def first_or(state: Range, batch: Range, later: Range) -> Range:
  """`batch` itself when nothing was seen before, else `later`; the count goes up by one, or stays below zero."""
  chosen = jax.tree.map(lambda a, b: jnp.where(state.count == 0, a, b), batch, later)
  count = jnp.where(batch.count < 0, -state.count - 1, state.count + 1)
  return chosen._replace(count=jnp.where(state.count < 0, state.count, count))
