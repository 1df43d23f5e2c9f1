"""Relational knowledge distillation: Park, Kim, Lu, Cho, "Relational Knowledge Distillation" (arXiv:1904.05068),
equations 5 to 10.

    d_ij   = ||x_i - x_j|| / mean over i != j of ||x_i - x_j||
    a_ijk  = cosine of the angle at i of the triangle (j, i, k)
    loss   = distance * mean over ij of h(d^s - d^t) + angle * mean over ijk of h(a^s - a^t)
    h(x)   = x^2 / 2 if |x| <= 1, else |x| - 1/2  (Huber)

The means are over all B^2 pairs and B^3 triples, including those of an example with itself, which are 0, as in the
authors' code. Their mean distance is over distances above 0, which is the same unless examples coincide. Differences
are taken directly: distances from squared norms lose all digits in float32 where the mean is large. This needs an array
of B x B x features, so prefer vectors. The batch is that of all devices. Reduction: example i has the pairs and
triangles at i; the mean is the loss. Summed over pairs of taps.
"""

import jax.numpy as jnp
from jaxtyping import Array

from kd.kinds import Context, Loss
from kd.maps import norm, unit
from kd.relations import others, rows
from kd.taps import Names, on_pairs
from leanax.core import axis, ranges


def rkd(student: Names, teacher: Names, distance: float = 25.0, angle: float = 50.0) -> Loss:
  """Distances and angles between examples.

  Args:
    student: taps of any shape; the paper's are vectors.
    teacher: as many of the teacher; shapes may differ.
    distance: weight of the distances.
    angle: weight of the angles.
  """
  ranges.check("rkd: distance", distance, ranges.NOT_NEGATIVE)
  ranges.check("rkd: angle", angle, ranges.NOT_NEGATIVE)
  ranges.check("rkd: distance + angle", distance + angle, ranges.POSITIVE)

  def relations(x: Array, context: Context) -> tuple[Array, Array, Array]:
    """Returns distances (b, B), cosines (b, B, B) and the number of valid examples."""
    these = rows(x, context, 3)  # of two examples, all distances and angles are constant
    pairs = others(these)
    edges = jnp.where(pairs[..., None], these.all[None] - these.local[:, None], 0.0)
    lengths = norm(edges)
    mean = axis.psum(jnp.sum(lengths), context.axis_name) / jnp.maximum(these.count * (these.count - 1), 1.0)
    directions = unit(edges)
    cosines = jnp.einsum("ijf,ikf->ijk", directions, directions)
    return lengths / jnp.where(mean > 0, mean, 1.0), cosines, these.count

  def gap(s: Array, t: Array, aux: None, context: Context) -> Array:
    del aux
    (d_s, a_s, count), (d_t, a_t, _) = relations(s, context), relations(t, context)
    lengths = jnp.sum(huber(d_s - d_t), -1) / count
    return distance * lengths + angle * jnp.sum(huber(a_s - a_t), (-1, -2)) / count**2

  return on_pairs("rkd", gap, student, teacher, relational=True)


def huber(x: Array) -> Array:
  """Returns x^2 / 2 where |x| <= 1, |x| - 1/2 beyond."""
  size = jnp.abs(x)
  return jnp.where(size <= 1, 0.5 * x * x, size - 0.5)
