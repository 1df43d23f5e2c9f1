"""The lowest and the highest value of a tensor, or of each channel, of which a min-max range is made."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core import axis as devices
from leanax.graph.kinds import Statistic
from leanax.graph.reduced import Axis, kept_shape, others


class Extrema(NamedTuple):
  """The ends of what was seen, float32: () or (channels,). NaN once a NaN was seen; (inf, -inf) while nothing was."""

  low: jax.Array | np.ndarray
  high: jax.Array | np.ndarray


def extrema(axis: Axis = None) -> Statistic:
  """Finds the lowest and the highest value, an `Extrema`.

  Args:
    axis: the axis, or axes, whose entries have extrema of their own, such as -1 for channels; None for the tensor's.
  """

  def init(x: jax.ShapeDtypeStruct) -> Extrema:
    shape = kept_shape("extrema", axis, x)
    return Extrema(jnp.full(shape, jnp.inf, jnp.float32), jnp.full(shape, -jnp.inf, jnp.float32))

  def update(state: Extrema, x: jax.Array, axis_name: str | None) -> Extrema:
    over = others(axis, x)
    low, high = jnp.min(x, over, initial=jnp.inf), jnp.max(x, over, initial=-jnp.inf)
    # The least of several devices' numbers may leave a NaN out.
    bad = devices.pmax(jnp.any(jnp.isnan(x), over).astype(jnp.int32), axis_name) > 0
    batch = Extrema(devices.pmin(low, axis_name), devices.pmax(high, axis_name))
    return merge(state, Extrema(*(jnp.where(bad, jnp.float32(jnp.nan), end) for end in batch)))

  def merge(a: Extrema, b: Extrema) -> Extrema:
    return Extrema(jnp.minimum(a.low, b.low), jnp.maximum(a.high, b.high))

  return Statistic("extrema", init, update, merge, lambda state: Extrema(*map(np.asarray, state)))
