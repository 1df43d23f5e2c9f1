"""Inter-channel correlation: Liu, Huang, Lin, Xie, Wang, Chang, Liang, "Exploring Inter-Channel Correlation for
Diversity-Preserved Knowledge Distillation" (ICCV 2021, arXiv:2202.03680), the form for classification.

    F (channels, places),  G = F F', its rows divided by their norms;   loss_i = ||G_s - G_t||_F^2 / channels

The student's channels first pass a trained 1x1 projector to the teacher's number of channels. Variant: the authors'
CIFAR-100 code, which divides by the channels once and normalises G's rows. Their projector ends in a batch
normalisation; ours is the linear map alone, with a bias, so that examples stay independent. Maps may differ in size, as
G sums over the places. Reduction: one number per example, summed over pairs of taps.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from kd.kinds import Context, Loss
from kd.maps import compared, flat_space, linear, linear_init, near_one, unit
from kd.reads import PLACES, require_count
from kd.taps import Names, on_pairs


def ickd(student: Names, teacher: Names) -> Loss:
  """Inter-channel correlation.

  Args:
    student: taps of maps (batch, height, width, channels) or token sequences.
    teacher: as many of the teacher; sizes and channels may differ.
  """

  def correlation(x: Array) -> Array:
    x, _ = near_one(flat_space(x), (1, 2))
    return unit(jnp.einsum("bpc,bpd->bcd", x, x))

  def gap(s: Array, t: Array, aux: dict[str, Array], context: Context) -> Array:
    del context
    require_count("ickd", "channels of the teacher", t.shape[-1])
    g_s, g_t = correlation(linear(aux, s)), correlation(t)
    compared("ickd", g_s, g_t)
    return jnp.sum((g_s - g_t) ** 2, (-1, -2)) / t.shape[-1]

  def init(key: Array, s: Any, t: Any) -> dict[str, Array]:
    return linear_init(key, s.shape[-1], t.shape[-1])

  return on_pairs("ickd", gap, student, teacher, init, shapes=PLACES)
