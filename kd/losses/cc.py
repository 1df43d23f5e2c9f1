"""Correlation congruence: Peng, Jin, Liu, Zhou, Wu, Liu, Zhang, Zhang, "Correlation Congruence for Knowledge
Distillation" (arXiv:1904.01802). Two losses have this name:

form="kernel", equations 5 to 8: a Gaussian kernel of normalised embeddings, as its Taylor series of some order P,

    K_ij = sum over p from 0 to P of exp(-2 gamma) (2 gamma)^p / p! (e_i . e_j)^p;   loss = ||K_s - K_t||_F^2 / B^2

form="consecutive", the code that the authors gave to a widely used benchmark, on embeddings of one width:

    d_i = |e_s,i - e_t,i|;   loss = mean over i of sum_c d_ic d_(i+1)c

which depends on the order of the batch. With `width`, both networks' activations pass through linear maps that are
trained with the student, as in that benchmark. The batch is that of all devices. Reduction: example i has its row of K,
or the pair (i, i + 1); the mean is the loss. Summed over pairs of taps.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd.kinds import Context, Loss
from kd.maps import linear, linear_init, unit
from kd.reads import require_count
from kd.relations import Rows, rows
from kd.taps import Names, on_pairs
from leanax.core import ranges
from leanax.core.errors import UserError, unknown

FORMS = ("kernel", "consecutive")


def cc(
  student: Names,
  teacher: Names,
  form: str = "kernel",
  gamma: float = 0.4,
  order: int = 2,
  width: int = 0,
) -> Loss:
  """Correlation congruence.

  Args:
    student: taps of any shape.
    teacher: as many of the teacher.
    form: "kernel" or "consecutive".
    gamma: of the Gaussian kernel.
    order: P, of its Taylor series.
    width: of trained linear embeddings of both; 0 compares the activations themselves.
  """
  if form not in FORMS:
    raise unknown("form of cc", form, FORMS)
  ranges.check("cc: gamma", gamma, ranges.POSITIVE)
  ranges.check("cc: order", order, ranges.whole(1, 100))  # each power is a term of the program
  ranges.check("cc: width", width, ranges.whole(0))

  def init(key: Array, s: Any, t: Any) -> dict:
    k, j = jax.random.split(key)
    return {
      "student": linear_init(k, math.prod(s.shape[1:]), width),
      "teacher": linear_init(j, math.prod(t.shape[1:]), width),
    }

  def congruence(s: Array, t: Array, aux: dict | None, context: Context) -> Array:
    s, t = s.reshape(s.shape[0], -1), t.reshape(t.shape[0], -1)
    if aux is not None:
      s, t = linear(aux["student"], s), linear(aux["teacher"], t)
    if form == "consecutive":
      if s.shape != t.shape:
        raise UserError(f"cc: embeddings are {s.shape[1]} and {t.shape[1]} wide; expected one width, or give 'width'")
      return _consecutive(rows(jnp.abs(s - t), context))
    require_count("cc", "directions of embeddings whose numbers", min(s.shape[1], t.shape[1]))
    s_rows, t_rows = rows(unit(s), context), rows(unit(t), context)
    k_s, k_t = (_kernel(r.local @ r.all.T, gamma, order) for r in (s_rows, t_rows))
    return jnp.sum(jnp.where(s_rows.valid, k_s - k_t, 0.0) ** 2, -1) / s_rows.count

  return on_pairs("cc", congruence, student, teacher, init if width else None, relational=True)


def _kernel(cosine: Array, gamma: float, order: int) -> Array:
  """Returns the Taylor series of exp(-gamma ||a - b||^2) of unit vectors, from their cosine."""
  terms = [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) for p in range(order + 1)]
  return sum((term * cosine**p for p, term in enumerate(terms) if p), jnp.full_like(cosine, terms[0]))


def _consecutive(gaps: Rows) -> Array:
  """Returns each example's product with the next valid one; 0 for the last, or NaN where that is not finite."""
  total = gaps.all.shape[0]
  places = jnp.argsort(~gaps.valid, stable=True).astype(jnp.int32)  # valid rows first, in their order
  rank = jnp.cumsum(gaps.valid.astype(jnp.int32))[gaps.index]  # of the next valid row
  product = jnp.sum(gaps.local * gaps.all[places[jnp.minimum(rank, total - 1)]], -1)
  has_next = gaps.counts & (rank.astype(gaps.count.dtype) < gaps.count)
  return jnp.where(has_next, product, 0 * jnp.sum(gaps.local, -1)) * gaps.count / jnp.maximum(gaps.count - 1, 1.0)
