"""The largest magnitude of each channel of a tensor.

SmoothQuant (Xiao et al., arXiv:2211.10438, equation 4) and symmetric ranges start from it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core import axis as devices
from leanax.graph.kinds import Statistic
from leanax.graph.reduced import Axis, kept_shape, others


def absolute_maximum(axis: Axis = -1) -> Statistic:
  """Finds the largest magnitude, float32: NaN once a NaN was seen, 0 while nothing was.

  Args:
    axis: the axis, or axes, whose entries have a maximum of their own; None for the tensor's.
  """

  def init(x: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(kept_shape("absolute_maximum", axis, x), jnp.float32)

  def update(state: jax.Array, x: jax.Array, axis_name: str | None) -> jax.Array:
    over = others(axis, x)
    largest = devices.pmax(jnp.max(jnp.abs(x), over, initial=0.0), axis_name)
    # The largest of several devices' numbers may leave a NaN out.
    bad = devices.pmax(jnp.any(jnp.isnan(x), over).astype(jnp.int32), axis_name) > 0
    return jnp.maximum(state, jnp.where(bad, jnp.float32(jnp.nan), largest))

  return Statistic("absolute_maximum", init, update, jnp.maximum, np.asarray)
