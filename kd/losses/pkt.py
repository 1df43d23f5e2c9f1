"""Probabilistic knowledge transfer: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge
Transfer" (arXiv:1803.10837), equations 3 to 6, with the cosine kernel.

    K_ij = (1 + cos(x_i, x_j)) / 2,   P_i. = K_i. / sum_j K_ij;   loss = sum_ij P^t_ij (log P^t_ij - log P^s_ij) / B^2

Variant: as in the authors' code, the mean over B^2 pairs in place of the paper's sum, with j = i, which the paper
excludes. They add 1e-7 within the logarithm; here all is computed in logarithms, and 1 + cos is at least the machine
epsilon. An example whose activation is 0 has cosine 0 with all. The batch is that of all devices. Reduction: example i
has its divergence over B; the mean is the loss. Summed over pairs of taps.
"""

import jax.numpy as jnp
from jaxtyping import Array

from kd.base import log_softmax
from kd.kinds import Context, Loss
from kd.maps import unit
from kd.reads import require_count
from kd.relations import rows
from kd.taps import Names, on_pairs


def pkt(student: Names, teacher: Names) -> Loss:
  """Probabilistic knowledge transfer.

  Args:
    student: taps of any shape; the paper's are vectors.
    teacher: as many of the teacher; shapes may differ.
  """

  def neighbours(x: Array, context: Context) -> tuple[Array, Array]:
    """Returns log P of this device's rows, 0 for invalid neighbours, and the number of valid rows."""
    x = x.reshape(x.shape[0], -1)
    require_count("pkt", "directions of embeddings whose numbers", x.shape[1])
    these = rows(unit(x), context)
    cosine = these.local @ these.all.T
    kernel, least = 1 + cosine, jnp.finfo(cosine.dtype).eps
    kernel = jnp.where(kernel < least, least, kernel)  # a maximum that keeps NaN
    return log_softmax(jnp.log(kernel), these.valid), these.count

  def divergence(s: Array, t: Array, aux: None, context: Context) -> Array:
    del aux
    (log_q, count), (log_p, _) = neighbours(s, context), neighbours(t, context)
    # Both sum to 1, so this is sum P log(P / Q), without its cancellation of terms a thousand times larger.
    gap = log_q - log_p
    return jnp.sum(jnp.exp(log_p) * (jnp.expm1(gap) - gap), -1) / count

  return on_pairs("pkt", divergence, student, teacher, relational=True)
