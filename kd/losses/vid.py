"""Variational information distillation: Ahn et al., "Variational Information Distillation for Knowledge Transfer"
(arXiv:1904.05835), equations 4 to 6.

    loss_i = mean over places and channels c of 1/2 ((mu(f_s) - f_t)^2 / v_c + log v_c),   v_c = softplus(a_c) + eps

mu, learned, maps the student's channels by three 1x1 convolutions with ReLUs between, as in the authors' code; a_c is
learned too. The constant log(2 pi) / 2 is omitted, so the loss may be negative. Variant: the larger of two maps is
averaged down. Reduction: a mean where the paper has a sum, one number per example, summed over pairs of taps.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kd.kinds import Context, Loss
from kd.layers import layer, layer_init, relu
from kd.maps import align, compared
from kd.reads import CHANNELS
from kd.taps import Names, on_pairs
from leanax.core import ranges


def vid(student: Names, teacher: Names, variance: float = 5.0, eps: float = 1e-5) -> Loss:
  """Variational information distillation.

  Args:
    student: taps of maps, token sequences or vectors.
    teacher: as many of the teacher.
    variance: initial value of every v_c; above eps.
    eps: added to the learned variance, above 0.
  """
  ranges.check("vid: eps", eps, ranges.POSITIVE)
  ranges.check("vid: variance", variance, ranges.POSITIVE)
  ranges.check("vid: variance - eps", variance - eps, ranges.POSITIVE)

  def negative_log_likelihood(s: Array, t: Array, aux: dict, context: Context) -> Array:
    s, t = align("vid", s, t)
    for index, part in enumerate(aux["mean"]):
      s = layer(part, s if index == 0 else relu(s), context)
    compared("vid", s, t)
    v = jax.nn.softplus(aux["variance"].astype(s.dtype)) + eps
    likelihood = 0.5 * ((s - t) ** 2 / v + jnp.log(v))
    return jnp.mean(likelihood.reshape(likelihood.shape[0], -1), -1)

  def init(key: Array, s: Array, t: Array) -> dict:
    sizes = (s.shape[-1], t.shape[-1], t.shape[-1], t.shape[-1])
    keys = jax.random.split(key, 3)
    mean = [layer_init(k, a, b) for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)]
    return {"mean": mean, "variance": jnp.full(sizes[-1], np.log(np.expm1(variance - eps)), jnp.float32)}

  return on_pairs("vid", negative_log_likelihood, student, teacher, init, shapes=CHANNELS)
