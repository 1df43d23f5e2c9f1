"""The kind of method that finds a tensor's range from statistics of calibration data.

Statistics are those of `graph.observe` (`leanax.graph.kinds.Statistic`); an observer says which it needs, and makes the
ends of a grid from their states.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core import axis
from leanax.graph.kinds import Statistic

Stats = Mapping[str, Any]  # states of statistics by their names
BATCHES = "batches"


class Batches(NamedTuple):
  """The mean magnitude of the batches, and their number; () each.

  Attributes:
    magnitude: float32, the mean of |x|, from which LSQ starts; NaN once a batch held NaN or infinity.
    count: int32, how many batches; 0 means none yet, -n that batch n was the first that held NaN or infinity.
  """

  magnitude: jax.Array
  count: jax.Array


def batches(rate: float | None = None) -> Statistic:
  """Returns the mean magnitude over all batches, each weighted alike, and their number.

  Args:
    rate: of a moving average from the first batch in place of the mean, in (0, 1]; it depends on the order.
  """

  def init(x: jax.ShapeDtypeStruct) -> Batches:
    del x
    return Batches(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

  def update(state: Batches, x: jax.Array, axis_name: str | None) -> Batches:
    bad = axis.pmax(jnp.any(~jnp.isfinite(x)).astype(jnp.int32), axis_name) > 0
    batch = jnp.where(bad, jnp.float32(jnp.nan), axis.pmean(jnp.mean(jnp.abs(x)), axis_name))
    share = 1 / (state.count + 1).astype(jnp.float32) if rate is None else rate
    mean = jnp.where(state.count == 0, batch, state.magnitude + share * (batch - state.magnitude))
    count = jnp.where(bad, -state.count - 1, state.count + 1)
    return Batches(mean, jnp.where(state.count < 0, state.count, count))

  def merge(a: Batches, b: Batches) -> Batches:
    share = b.count.astype(jnp.float32) / jnp.maximum(a.count + b.count, 1).astype(jnp.float32)
    mean = a.magnitude * (1 - share) + b.magnitude * share
    bad = jnp.where(a.count < 0, a.count, jnp.where(b.count < 0, b.count - a.count, 0))
    return Batches(mean, jnp.where(bad < 0, bad, a.count + b.count))

  def value(state: Batches) -> Batches:
    return jax.tree.map(np.asarray, state)

  return Statistic(BATCHES, init, update, merge if rate is None else None, value)


@dataclasses.dataclass(frozen=True)
class Observer:
  """A rule that makes the range of a tensor's grid from statistics.

  Attributes:
    needs: the statistics, of the tensor as a whole.
    range: (their states by name, bits) -> the lowest and the highest value of the grid, () each; inside jit too.
    batches: the mean magnitude and the number of batches, which are gathered of every tensor.
  """

  needs: tuple[Statistic, ...]
  range: Callable[[Stats, int], tuple[jax.Array, jax.Array]]
  batches: Statistic = dataclasses.field(default_factory=batches)

  @property
  def statistics(self) -> tuple[Statistic, ...]:
    """All that is gathered."""
    return (*self.needs, self.batches)

  def init(self) -> dict[str, Any]:
    """Returns the states before the first batch, of a size that does not depend on the data."""
    return {one.name: one.init(jax.ShapeDtypeStruct((), jnp.float32)) for one in self.statistics}

  def update(self, stats: Stats, x: jax.Array, axis_name: str | None = None) -> dict[str, Any]:
    """Returns the states after one more batch, of which each device of `axis_name` has an equal share; no gradient."""
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    return {one.name: one.update(stats[one.name], x, axis_name) for one in self.statistics}

  def ends(self, stats: Stats, bits: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the ends for a grid and the mean magnitude; NaN once a batch held NaN or infinity."""
    seen = stats[BATCHES]
    low, high = (jnp.where(seen.count < 0, jnp.float32(jnp.nan), end) for end in self.range(stats, bits))
    return low, high, seen.magnitude
