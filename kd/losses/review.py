"""Knowledge review: Chen et al., "Distilling Knowledge via Knowledge Review" (arXiv:2104.09044), section 3.

Taps are given from early to late and processed from late to early. At each,

    x = r(f_s);   y = the x carried from the later tap;   (a, b) = sigmoid(g([x, y]));   x <- a x + b y
    loss += hierarchical(o(x), f_t)

where r, g are learned 1x1 convolutions, o is a 3x3 one, r and o with batch normalisation (of the batch of all devices);
the last tap has no y. y is resized to x, and x to f_t, by the nearest neighbour. `hierarchical` is the hierarchical
context loss: the mean square of the difference at full size, plus those of both maps averaged down to 4x4, 2x2 and 1x1,
where that is smaller, with weights 1/2, 1/4, 1/8 in turn, over the sum of the weights. A vector is a map of one place.
Reduction: a mean, one number per example, summed over taps. The authors raise its weight from 0 in the first 20 epochs:
use a schedule.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd.kinds import Context, Loss, LossOut, Outputs, Taps
from kd.layers import layer, layer_init, mean_square
from kd.maps import compared
from kd.reads import MAPS_OR_VECTORS
from kd.taps import Names, paired
from leanax.core import ranges
from leanax.core.errors import UserError
from leanax.core.pooling import pool_to


def review(student: Names, teacher: Names, width: int | None = None) -> Loss:
  """Knowledge review.

  Args:
    student: two or more taps of maps, from early to late; the last ones may be vectors.
    teacher: as many of the teacher.
    width: channels of the map carried from tap to tap; by default those of the student's last tap, 512 at most.
  """
  student_taps, teacher_taps = paired("review", student, teacher)
  if len(student_taps) < 2:
    raise UserError("review: 1 tap of each network; expected 2 or more, from early to late")
  ranges.check("review: width", 1 if width is None else width, ranges.whole(1))

  def fn(s: Outputs, t: Outputs, context: Context) -> LossOut:
    carried, parts = None, []
    for a, b, aux in reversed(list(zip(student_taps, teacher_taps, context.aux, strict=True))):
      x, target = layer(aux["reduce"], as_map(s.taps[a]), context), as_map(t.taps[b])
      if carried is not None:
        x = fused(aux["gates"], x, nearest(carried, x.shape[1:3]), context)
      carried = nearest(x, target.shape[1:3])
      out = layer(aux["out"], carried, context)
      compared("review", out, target)
      parts.append(hierarchical(out, target))
    return LossOut(sum(parts[1:], parts[0]))

  def init(key: Array, s: Outputs, t: Outputs, variables):
    del variables
    inner = width or min(512, s.taps[student_taps[-1]].shape[-1])
    out = []
    each = zip(jax.random.split(key, len(student_taps)), student_taps, teacher_taps, strict=True)
    for index, (k, a, b) in enumerate(each):
      keys = jax.random.split(k, 3)
      aux = {
        "reduce": layer_init(keys[0], s.taps[a].shape[-1], inner, normalise=True),
        "out": layer_init(keys[1], inner, t.taps[b].shape[-1], 3, normalise=True),
      }
      out.append(aux if index == len(student_taps) - 1 else {**aux, "gates": layer_init(keys[2], 2 * inner, 2)})
    return out, None

  return Loss("review", fn, taps=Taps(student_taps, teacher_taps, MAPS_OR_VECTORS), init_fn=init, relational=True)


def as_map(x: Array) -> Array:
  """Returns a vector as a map of one place."""
  return x[:, None, None] if x.ndim == 2 else x


def fused(aux: dict[str, Array], x: Array, y: Array, context: Context) -> Array:
  """Adds two maps, weighted at each place by gates computed from both."""
  gates = jax.nn.sigmoid(layer(aux, jnp.concatenate([x, y], -1), context))
  return x * gates[..., :1] + y * gates[..., 1:]


def nearest(x: Array, size: tuple[int, ...]) -> Array:
  """Resizes a map: place i is place floor(i old / new) of the input."""
  for place, length in ((1, size[0]), (2, size[1])):
    if x.shape[place] != length:
      x = jnp.take(x, jnp.arange(length, dtype=jnp.int32) * x.shape[place] // length, place)
  return x


def hierarchical(s: Array, t: Array) -> Array:
  """Returns the hierarchical context loss of two maps of one shape."""
  total, weight, weights = mean_square(s - t), 1.0, 1.0
  for side in (4, 2, 1):
    if side < s.shape[1]:
      weight /= 2
      weights += weight
      size = side, min(side, s.shape[2])
      total += weight * mean_square(pool_to(s, size) - pool_to(t, size))
  return total / weights
