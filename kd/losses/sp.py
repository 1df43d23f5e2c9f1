"""Similarity-preserving distillation: Tung and Mori, "Similarity-Preserving Knowledge Distillation"
(arXiv:1907.09682), equations 2 to 4.

    G = F F^T, its rows divided by their norms;   loss = ||G_t - G_s||_F^2 / B^2

F has one flattened activation per row. The batch is that of all devices. Reduction: example i has sum_j (...)^2 / B;
the mean is the loss. Summed over pairs of taps.
"""

import jax.numpy as jnp
from jaxtyping import Array

from kd.kinds import Context, Loss
from kd.maps import unit
from kd.relations import rows
from kd.taps import Names, on_pairs


def sp(student: Names, teacher: Names) -> Loss:
  """Similarity-preserving distillation.

  Args:
    student: taps of any shape.
    teacher: as many of the teacher; shapes may differ.
  """

  def similarity(s: Array, t: Array, aux: None, context: Context) -> Array:
    del aux
    s_rows, t_rows = rows(s, context), rows(t, context)
    gap = unit(s_rows.local @ s_rows.all.T) - unit(t_rows.local @ t_rows.all.T)
    return jnp.sum(gap**2, -1) / s_rows.count

  return on_pairs("sp", similarity, student, teacher, relational=True)
