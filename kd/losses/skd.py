"""Pair-wise structured distillation: Liu, Chen, Liu, Qin, Luo, Wang, "Structured Knowledge Distillation for Semantic
Segmentation" (CVPR 2019, arXiv:1903.04197), the pair-wise loss.

    a_ij = f_i . f_j / (||f_i|| ||f_j||)  of the places i, j of one example
    loss_i = mean over all pairs of places of (a^s_ij - a^t_ij)^2

f_i are the channels at a place, whose numbers may differ between the networks. The larger of two maps is averaged down.
Variant: every place is a node; the authors' code first takes the maximum over patches of half the map's size. A map of
P places takes P^2 numbers per example. Reduction: one number per example, summed over pairs of taps.
"""

import jax.numpy as jnp
from jaxtyping import Array

from kd.kinds import Context, Loss
from kd.maps import align, flat_space, unit
from kd.reads import PLACES, require_count
from kd.taps import Names, on_pairs


def skd(student: Names, teacher: Names) -> Loss:
  """Pair-wise structured distillation.

  Args:
    student: taps of maps (batch, height, width, channels) or token sequences.
    teacher: as many of the teacher; channels may differ.
  """

  def similarities(x: Array) -> Array:
    x = unit(flat_space(x))
    return jnp.einsum("bpc,bqc->bpq", x, x)

  def gap(s: Array, t: Array, aux: None, context: Context) -> Array:
    del aux, context
    s, t = align("skd", s, t)
    a_s, a_t = similarities(s), similarities(t)
    require_count("skd", "places", a_s.shape[-1])
    return jnp.mean((a_s - a_t) ** 2, (-2, -1))

  return on_pairs("skd", gap, student, teacher, shapes=PLACES)
