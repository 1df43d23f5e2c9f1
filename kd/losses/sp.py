"""Similarity-preserving distillation: Tung and Mori, "Similarity-Preserving Knowledge Distillation"
(arXiv:1907.09682), equations 2 to 4.

    G = F F^T, its rows divided by their norms;   loss = ||G_t - G_s||_F^2 / B^2

F has one flattened activation per row. The batch is that of all devices. Reduction: example i has sum_j (...)^2 / B;
the mean is the loss. Summed over pairs of taps.
"""

import jax.numpy as jnp
from jaxtyping import Array

from kd.kinds import Context, Loss
from kd.maps import near_one, unit
from kd.relations import Rows, rows
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
    gap = _similarities(s_rows) - _similarities(t_rows)
    return jnp.sum(gap**2, -1) / s_rows.count

  return on_pairs("sp", similarity, student, teacher, relational=True)


def _similarities(of: Rows) -> Array:
  """Returns (b, B): the rows of G over their norms; a factor of a row or of all rows does not change them."""
  return unit(near_one(of.local, -1)[0] @ near_one(of.all)[0].T)
