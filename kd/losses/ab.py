"""Activation boundaries: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden
Neurons" (arXiv:1811.03233), section 3.

    loss_i = sum over places and channels of  max(0, m + r(s))^2  where t <= 0,   max(0, m - r(s))^2  where t > 0

s and t are taps before the ReLU; m is the margin; r, learned, is the connector, a 1x1 convolution with batch
normalisation. Only the sign of the teacher's neurons is read. The larger of two maps is averaged down
first. Reduction: a sum, the paper's squared norm, one number per example, summed over pairs of taps. The authors'
code multiplies it by 3 / 1000 and halves it once more for every stage before the last: use the weights of terms. The
paper trains with this loss first and distils afterwards: use schedules of weights.
"""

import jax.numpy as jnp
from jaxtyping import Array

from kd.kinds import Context, Loss
from kd.layers import Layer, layer, layer_init, relu
from kd.maps import align, compared
from kd.reads import CHANNELS
from kd.taps import Names, on_pairs
from leanax.core import ranges


def ab(student: Names, teacher: Names, margin: float = 1.0) -> Loss:
  """Distillation of activation boundaries.

  Args:
    student: taps before a ReLU, of maps, token sequences or vectors.
    teacher: as many of the teacher.
    margin: m > 0.
  """
  ranges.check("ab: margin", margin, ranges.POSITIVE)

  def crossed(s: Array, t: Array, aux: Layer, context: Context) -> Array:
    s, t = align("ab", s, t)
    s = layer(aux, s, context)
    compared("ab", s, t)
    gap = relu(margin + jnp.where(t > 0, -s, s) + 0 * t)  # of which NaN and infinities have no sign
    return jnp.sum(gap.reshape(gap.shape[0], -1) ** 2, -1)

  def init(key: Array, s: Array, t: Array) -> Layer:
    return layer_init(key, s.shape[-1], t.shape[-1], normalise=True)

  return on_pairs("ab", crossed, student, teacher, init, relational=True, shapes=CHANNELS)
