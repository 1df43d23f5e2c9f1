"""Distillation by singular vectors: Lee, Kim, Song, "Self-supervised Knowledge Distillation Using Singular Value
Decomposition" (arXiv:1807.06819, ECCV 2018), section 3.

    F = U S V^T,  F: (places, channels) of a tap;   V: the k leading right vectors times the teacher's S / ||S||
    R_cdj = exp(-(V_cj - V'_dj)^2 / 8)  of a tap and the one before it;   loss_i = sum over c, d, j of (R_s - R_t)^2

Two or more taps, from early to late; each is paired with the next. The networks' places may differ, without pooling;
their channels must agree. The width 8 and the teacher's singular values on both sides are those of the common
re-implementation. Reduction: a sum, one number per example, summed over pairs of taps.

Signs: the sign of a singular vector is arbitrary. The teacher's vectors get the sign with a sum of entries of 0 or
more, so that the target does not depend on the solver. Each of them is compared with the most parallel of the student's
k + 3 leading vectors, with the sign of their cosine.

Gradient: V comes from the eigenvectors of F^T F (of F F^T where there are fewer places than channels). Their exact
gradient divides by the gaps between eigenvalues; here 1 / gap is gap / (gap^2 + e^2), e = sqrt(machine epsilon) times
the largest, which is always finite, and exact but for nearly equal eigenvalues. A dead map has vectors 0 and gradient
0.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd.kinds import Context, Loss, LossOut, Outputs, Taps
from kd.maps import flat_space, near_one, unit
from kd.reads import PLACES, require_count
from kd.taps import Names, paired
from leanax.core import ranges
from leanax.core.errors import UserError


def kdsvd(student: Names, teacher: Names, vectors: int = 1) -> Loss:
  """Distillation by singular vectors.

  Args:
    student: two or more taps of maps or token sequences, from early to late.
    teacher: as many of the teacher, with the same channels.
    vectors: k, the number of singular vectors.
  """
  student_taps, teacher_taps = paired("kdsvd", student, teacher)
  ranges.check("kdsvd: vectors", vectors, ranges.whole(1))
  if len(student_taps) < 2:
    raise UserError("kdsvd: 1 tap of each network; expected 2 or more, from early to late")

  def scaled_vectors(s: Array, t: Array) -> tuple[Array, Array]:
    if s.shape[-1] != t.shape[-1]:
      raise UserError(
        f"kdsvd: shapes {s.shape} of the student and {t.shape} of the teacher; expected the same channels"
      )
    require_count("kdsvd", "channels", t.shape[-1])
    s, t = (near_one(flat_space(x), (1, 2))[0] for x in (s, t))  # the loss reads the ratios of the singular values only
    v_t, size = right_vectors(t, vectors)
    v_t = v_t * jnp.where(jnp.sum(v_t, 1, keepdims=True) < 0, -1.0, 1.0).astype(v_t.dtype)
    v_s = _aligned(right_vectors(s, vectors + 3)[0], v_t)
    weight = unit(size)[:, None]
    return v_s * weight, v_t * weight

  def fn(s: Outputs, t: Outputs, context: Context) -> LossOut:
    pairs = [scaled_vectors(s.taps[a], t.taps[b]) for a, b in zip(student_taps, teacher_taps, strict=True)]
    parts = []
    for (before_s, before_t), (s_now, t_now) in pairwise(pairs):
      if before_t.shape[-1] != t_now.shape[-1]:
        raise UserError(f"kdsvd: vectors is {vectors}; expected at most the places and channels of every tap")
      gap = _kernel(s_now, before_s) - _kernel(t_now, before_t)
      parts.append(jnp.sum(gap**2, (1, 2, 3)))
    return LossOut(sum(parts[1:], parts[0]))

  return Loss("kdsvd", fn, taps=Taps(student_taps, teacher_taps, PLACES))


def _kernel(now: Array, before: Array) -> Array:
  """Returns the Gaussian kernel R, (batch, channels, channels', vectors)."""
  return jnp.exp(-((now[:, :, None] - before[:, None]) ** 2) / 8)


def _aligned(student: Array, teacher: Array) -> Array:
  """Returns the student's most parallel vector to each of the teacher's, with the sign of their cosine."""
  cosine = jnp.einsum("bci,bcj->bij", student, teacher)
  best = jnp.argmax(jnp.abs(cosine), 1)[:, None]
  sign = jnp.sign(jnp.take_along_axis(cosine, best, 1))
  return jnp.take_along_axis(student, best, 2) * jax.lax.stop_gradient(sign)


def right_vectors(x: Array, count: int) -> tuple[Array, Array]:
  """Returns the leading right singular vectors, of any sign, and singular values; 0 beyond the rank.

  Args:
    x: (batch, places, channels).
    count: number of vectors; at most the number of places and of channels.

  Returns:
    (batch, channels, count) and (batch, count), largest first.
  """
  wide = x.shape[1] < x.shape[2]
  square = jnp.einsum("bpc,bqc->bpq" if wide else "bpc,bpd->bcd", x, x)
  fine = jnp.all(jnp.isfinite(square), (1, 2))  # the solver's result for the others is undefined
  values, vectors = _eigh(jnp.where(fine[:, None, None], square, 0.0))
  values, vectors = values[:, ::-1][:, :count], vectors[:, :, ::-1][:, :, :count]
  alive = values > values[:, :1] * max(x.shape[1:]) * jnp.finfo(x.dtype).eps
  values, vectors = jnp.where(alive, values, 0.0), jnp.where(alive[:, None], vectors, 0.0)
  if wide:
    vectors = unit(jnp.einsum("bpc,bpk->bck", x, vectors), 1)
  vectors = jnp.where(fine[:, None, None], vectors, jnp.nan)
  return vectors, jnp.sqrt(jnp.where(alive, values, 1.0)) * alive.astype(x.dtype)


@jax.custom_jvp
def _eigh(x: Array) -> tuple[Array, Array]:
  # One matrix per call: in jaxlib 0.10.2 two concurrent batched calls deadlock on two threads.
  values, vectors = jax.lax.map(jnp.linalg.eigh, x)
  return values, vectors


@_eigh.defjvp
def _eigh_derivative(primals, tangents):
  values, vectors = _eigh(*primals)
  inner = jnp.swapaxes(vectors, -1, -2) @ tangents[0] @ vectors
  gap = values[..., None, :] - values[..., :, None]
  small = jnp.max(jnp.abs(values), -1)[..., None, None] ** 2 * jnp.finfo(values.dtype).eps
  square = gap**2 + small
  inverse = jnp.where(square > 0, gap / jnp.where(square > 0, square, 1.0), 0.0)
  return (values, vectors), (jnp.diagonal(inner, axis1=-2, axis2=-1), vectors @ (inverse * inner))
