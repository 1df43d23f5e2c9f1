"""Attention transfer: Zagoruyko and Komodakis, "Paying More Attention to Attention" (arXiv:1612.03928), section 3.1.

    Q = sum_c |f_c|^p, one number per place;   loss_i = mean over places of (Q_s / ||Q_s|| - Q_t / ||Q_t||)^2

Variant: the mean over places of the squared distance, as in the authors' code; equation 2 of the paper has the
unsquared norm of the same difference (`paper=True`). The channels may differ; the larger of two maps is averaged down.
Reduction: one number per example, summed over pairs of taps.
"""

import jax.numpy as jnp
from jaxtyping import Array

from kd.kinds import Context, Loss
from kd.maps import align, flat_space, near_one, norm, unit
from kd.reads import PLACES, require_count
from kd.taps import Names, on_pairs
from leanax.core import ranges


def at(student: Names, teacher: Names, power: int = 2, paper: bool = False) -> Loss:
  """Attention transfer.

  Args:
    student: taps of maps (batch, height, width, channels) or token sequences.
    teacher: as many of the teacher.
    power: p >= 1, of the activations' magnitudes.
    paper: use the norm of equation 2 in place of the mean square.
  """
  ranges.check("at: power", power, ranges.at_least(1))
  ranges.check_switch("at: paper", paper)

  def attention(x: Array) -> Array:
    x, _ = near_one(flat_space(x), (1, 2))  # Q / ||Q|| is that of an example at any scale
    return jnp.mean(jnp.abs(x) ** power, -1)

  def distance(s: Array, t: Array, aux: None, context: Context) -> Array:
    del aux, context
    s, t = (attention(x) for x in align("at", s, t))
    require_count("at", "places", s.shape[1])
    gap = unit(s) - unit(t)
    return norm(gap) if paper else jnp.mean(gap**2, -1)

  return on_pairs("at", distance, student, teacher, shapes=PLACES)
