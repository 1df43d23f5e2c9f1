"""Similarity-preserving distillation: Tung and Mori, "Similarity-Preserving Knowledge Distillation"
(arXiv:1907.09682), equations 2 to 4.

    G = F F^T, its rows divided by their norms;   loss = ||G_t - G_s||_F^2 / B^2

F has a flattened activation a row. The batch is that of all devices. Reduction: row i gives sum_j (...)^2 / B, whose
mean is the loss; summed over pairs of taps.
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
    mine, its = rows(s, context), rows(t, context)
    gap = _similarities(mine) - _similarities(its)
    return jnp.sum(gap**2, -1) / mine.count

  return on_pairs("sp", similarity, student, teacher, relational=True)


def _similarities(these: Rows) -> Array:
  """Returns (b, B): the rows of G over their norms, which a factor of a row or of all rows does not change."""
  return unit(near_one(these.mine, -1)[0] @ near_one(these.all)[0].T)
