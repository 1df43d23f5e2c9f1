"""Flow of the solution procedure: Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network
Minimization and Transfer Learning" (CVPR 2017), equations 1 and 2.

    G = F_1^T F_2 / (places),  F_1, F_2: (places, channels) of two taps of one network;   loss_i = mean (G_s - G_t)^2

Two or more taps, from early to late; each is paired with the next. The channels of student and teacher must agree;
heights and widths may differ. Variant: the larger map of a pair is averaged down to the smaller, and the loss is a mean
over the entries of G, as in the common re-implementation. `paper=True` is the paper's form: the larger map is
max-pooled, and the loss is a sum over the entries. Reduction: one number per example, a mean (a sum) over the
entries, summed over pairs of taps. The paper trains with this loss first and without it afterwards.
"""

from itertools import pairwise

import jax.numpy as jnp
from jaxtyping import Array

from kd.kinds import Context, Loss, LossOut, Outputs, Taps
from kd.maps import flat_space, no_infinity
from kd.reads import MAPS
from kd.taps import Names, paired
from leanax.core import ranges
from leanax.core.errors import UserError
from leanax.core.pooling import pool_to


def fsp(student: Names, teacher: Names, paper: bool = False) -> Loss:
  """Flow of the solution procedure.

  Args:
    student: two or more taps of maps, from early to late.
    teacher: as many of the teacher, with the same channels.
    paper: use max-pooling and a sum in place of averages.
  """
  student_taps, teacher_taps = paired("fsp", student, teacher)
  ranges.check_switch("fsp: paper", paper)
  if len(student_taps) < 2:
    raise UserError("fsp: 1 tap of each network; expected 2 or more, from early to late")

  def flow(low: Array, high: Array) -> Array:
    size = min(low.shape[1], high.shape[1]), min(low.shape[2], high.shape[2])
    low, high = (flat_space(_max_pool(x, size) if paper else pool_to(x, size)) for x in (low, high))
    return jnp.einsum("bpc,bpd->bcd", low, high) / low.shape[1]

  def fn(s: Outputs, t: Outputs, context: Context) -> LossOut:
    parts = []
    for (a, b), (c, d) in zip(pairwise(student_taps), pairwise(teacher_taps), strict=True):
      g_s, g_t = flow(s.taps[a], s.taps[b]), flow(t.taps[c], t.taps[d])
      if g_s.shape != g_t.shape:
        raise UserError(f"fsp: channels {g_s.shape[1:]} of the student, {g_t.shape[1:]} of the teacher; expected equal")
      parts.append((jnp.sum if paper else jnp.mean)((g_s - g_t) ** 2, (1, 2)))
    return LossOut(sum(parts[1:], parts[0]))

  return Loss("fsp", fn, taps=Taps(student_taps, teacher_taps, MAPS))


def _max_pool(x: Array, size: tuple[int, int]) -> Array:
  height, width = x.shape[1] // size[0], x.shape[2] // size[1]
  if x.shape[1:3] != (height * size[0], width * size[1]):
    raise UserError(f"fsp: a map of {x.shape[1:3]} cannot be max-pooled to {size}; expected a multiple")
  x = jnp.where(jnp.isfinite(x), x, jnp.inf)  # XLA's maximum may drop NaN
  largest = jnp.max(x.reshape(x.shape[0], size[0], height, size[1], width, x.shape[3]), (2, 4))
  return no_infinity(largest)
