"""Overhaul of feature distillation: Heo et al., "A Comprehensive Overhaul of Feature Distillation" (arXiv:1904.01866),
equations 2 to 5.

    T = max(f_t, m_c),   S = r(f_s)
    loss_i = sum over places and channels of (S - T)^2, with 0 where S <= T <= 0

Taps are before the ReLU. r, learned, is a 1x1 convolution with batch normalisation. The margin m_c < 0 of a channel is
the mean of the teacher's negative responses. It is computed from the batch normalisation before the tap, whose output
is taken as normal with mean "bias" and deviation "scale": m = bias - scale phi(bias / scale) / Phi(-bias / scale), and
-3 scale where less than one response in a thousand is negative, as in the authors' code. Without one it is measured on
each batch of all devices. The larger of two maps is averaged down first. Reduction: a sum, one number per example,
summed over pairs of taps. The authors' code divides it by 1000, halves it once more for every stage before the last,
and runs the teacher's batch normalisations on batch statistics.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd.kinds import Context, Loss, LossOut, Outputs, Taps
from kd.layers import Layer, layer, layer_init, module_of
from kd.maps import align, compared, no_infinity
from kd.reads import CHANNELS
from kd.taps import Names, named, paired
from leanax.core import axis
from leanax.core.errors import UserError


def ofd(student: Names, teacher: Names, batch_norm: Names | None = None) -> Loss:
  """Overhaul of feature distillation.

  Args:
    student: taps before a ReLU, of maps, token sequences or vectors.
    teacher: as many of the teacher.
    batch_norm: the paths of the batch normalisations before the teacher's taps, such as "Block_2/BatchNorm_1"; None
      measures the margins on the batch.
  """
  student_taps, teacher_taps = paired("ofd", student, teacher)
  norms = None if batch_norm is None else named("ofd", "batch_norm", batch_norm)
  if norms is not None and len(norms) != len(teacher_taps):
    raise UserError(
      f"ofd: {len(norms)} paths of batch_norm for {len(teacher_taps)} taps of the teacher; expected one for each"
    )

  def distance(s: Array, t: Array, aux: Layer, margin: Array, context: Context) -> Array:
    s, t = align("ofd", s, t)
    s, t, margin = layer(aux, s, context), no_infinity(t), margin.astype(t.dtype)
    compared("ofd", s, t)
    t = jnp.where(t < margin, margin, t)  # a maximum that keeps NaN
    gap = jnp.where((s <= t) & (t <= 0), 0.0, s - t)
    return jnp.sum(gap.reshape(gap.shape[0], -1) ** 2, -1)

  def fn(s: Outputs, t: Outputs, context: Context) -> LossOut:
    margins = [measured(t.taps[b], context) for b in teacher_taps] if norms is None else context.aux_state["margin"]
    parts = [
      distance(s.taps[a], t.taps[b], aux, margin, context)
      for a, b, aux, margin in zip(student_taps, teacher_taps, context.aux, margins, strict=True)
    ]
    return LossOut(sum(parts[1:], parts[0]))

  def init(key: Array, s: Outputs, t: Outputs, variables):
    keys = jax.random.split(key, len(student_taps))
    aux = [
      layer_init(k, s.taps[a].shape[-1], t.taps[b].shape[-1], normalise=True)
      for k, a, b in zip(keys, student_taps, teacher_taps, strict=True)
    ]
    if norms is None:
      return aux, None
    modules = [module_of("ofd", "batch_norm", variables, path, ("scale", "bias")) for path in norms]
    return aux, {"margin": [negative_mean(module["bias"], module["scale"]) for module in modules]}

  return Loss("ofd", fn, taps=Taps(student_taps, teacher_taps, CHANNELS), init_fn=init, relational=True)


def negative_mean(mean: Array, scale: Array) -> Array:
  """Returns E[x | x < 0] of a normal x with deviation |scale|; -3 |scale| where P(x < 0) is 0.001 or less."""
  deviation = jnp.maximum(jnp.abs(scale), jnp.finfo(scale.dtype).tiny)
  below = jax.scipy.stats.norm.cdf(-mean / deviation)
  often = below > 0.001
  drop = deviation * jax.scipy.stats.norm.pdf(mean / deviation) / jnp.where(often, below, 1.0)
  return jnp.where(often, mean - drop, -3 * deviation)


def measured(t: Array, context: Context) -> Array:
  """Returns the mean of the negative responses of a batch, (channels,), 0 where there are none."""
  valid = context.batch.get("valid")
  negative = t < 0
  if valid is not None:
    negative &= valid.reshape(-1, *(1,) * (t.ndim - 1))
  axes = tuple(range(t.ndim - 1))
  total = axis.psum(jnp.sum(jnp.where(negative, t, 0.0), axes), context.axis_name)
  return total / jnp.maximum(axis.psum(jnp.sum(negative.astype(t.dtype), axes), context.axis_name), 1.0)
