"""Neuron selectivity transfer: Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer"
(arXiv:1707.01219), equations 5 to 8, with the polynomial kernel of degree 2 and offset 0.

    f_c, the map of channel c over its norm, is one sample of a distribution over places;  k(f, g) = (f . g)^2
    loss_i = mean_cc' k(t_c, t_c') + mean_cc' k(s_c, s_c') - 2 mean_cc' k(s_c, t_c')

This squared maximum mean discrepancy does not pair channels, so their numbers may differ. The larger of two maps is
averaged down. Reduction: one number per example, summed over pairs of taps.
"""

import jax.numpy as jnp
from jaxtyping import Array

from kd.kinds import Context, Loss
from kd.maps import align, flat_space, unit
from kd.reads import PLACES, require_count
from kd.taps import Names, on_pairs


def nst(student: Names, teacher: Names) -> Loss:
  """Neuron selectivity transfer.

  Args:
    student: taps of maps (batch, height, width, channels) or token sequences.
    teacher: as many of the teacher; channels may differ.
  """

  def discrepancy(s: Array, t: Array, aux: None, context: Context) -> Array:
    del aux, context
    s, t = (unit(flat_space(x), -2) for x in align("nst", s, t))
    require_count("nst", "places", s.shape[1])
    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)

  return on_pairs("nst", discrepancy, student, teacher, shapes=PLACES)


def kernel(f: Array, g: Array) -> Array:
  """Returns the mean of the kernel over pairs of channels, from maps (batch, places, channels)."""
  return jnp.mean(jnp.einsum("bpc,bpd->bcd", f, g) ** 2, (-1, -2))
