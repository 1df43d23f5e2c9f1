"""Reused teacher classifier: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier"
(arXiv:2203.14001), equations 3 and 4.

    loss_i = mean over places and channels of (p(f_s) - f_t)^2,   logits at inference = W mean over places of p(f_s) + b

f_t are the teacher's features before its classifier (W, b), most often the last map before the pooling. p, learned, is
a bottleneck: 1x1 to 1/factor of the teacher's channels, 3x3, 1x1 to all of them, each with batch normalisation and ReLU
(all three are linear maps for vectors and tokens). It belongs to the student that is deployed, so running means of
its batch statistics are kept in aux_state; `simkd_logits` uses them. Of two maps of different size the larger is
averaged down before. The paper trains with this loss alone. Reduction: a mean, one number an example.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from core.errors import UserError
from kd.base import Outputs, positive
from kd.layers import Layer, Normalise, layer, layer_init, match, mean_square
from kd.maps import batch_normalise, flat_space, linear, moments, pool_to
from kd.taps import About, Names, TapLoss, paired

EPSILON = 1e-5  # of the batch normalisations


def simkd(student: Names, teacher: Names, factor: int = 2, momentum: float = 0.9) -> TapLoss:
  """Reused teacher classifier.

  Args:
    student: one tap, the student's last features.
    teacher: one tap, the teacher's features before its classifier, pooled or not.
    factor: how much narrower the bottleneck is than the teacher's features.
    momentum: of the running means, between 0 and 1.
  """
  mine, its = paired("simkd", student, teacher)
  if len(mine) > 1:
    raise UserError(f"simkd: {len(mine)} taps of each network; expected 1, the features before the classifier")
  positive("simkd", "factor", factor)
  if not 0 <= momentum < 1:
    raise UserError(f"simkd: momentum is {momentum}; expected a number from 0 to below 1")

  def fn(s: Outputs, t: Outputs, about: About):
    seen = []

    def normalise(x: Array) -> Array:
      mean, variance = jax.lax.stop_gradient(moments(x, about))
      seen.append({"mean": mean, "variance": variance})
      return batch_normalise(x, about, EPSILON)

    x, goal = match("simkd", s.taps[mine[0]], t.taps[its[0]])
    gap = project(about.aux, x, [normalise] * 3) - goal
    kept = jax.tree.map(lambda old, new: momentum * old + (1 - momentum) * new.astype(old.dtype), about.aux_state, seen)
    return mean_square(gap), kept, {}

  def init(key: Array, s: Outputs, t: Outputs, variables):
    del variables
    wide = t.taps[its[0]].shape[-1]
    narrow = max(1, wide // factor)
    sizes = (s.taps[mine[0]].shape[-1], narrow, narrow, wide)
    sides = (1, 3 if len(t.taps[its[0]].shape) == 4 else 1, 1)
    keys = jax.random.split(key, 3)
    aux = [layer_init(k, a, b, n, True) for k, a, b, n in zip(keys, sizes[:-1], sizes[1:], sides, strict=True)]
    return aux, [{"mean": jnp.zeros_like(a["offset"]), "variance": jnp.ones_like(a["scale"])} for a in aux]

  return TapLoss("simkd", fn, mine, its, init, relational=True)


def project(aux: Sequence[Layer], x: Array, normalise: Sequence[Normalise]) -> Array:
  """The projector p, with a function for each of its batch normalisations."""
  for part, f in zip(aux, normalise, strict=True):
    x = jax.nn.relu(layer(part, x, f))
  return x


def simkd_logits(
  aux: Sequence[Layer],
  aux_state: Sequence[Mapping[str, Array]],
  classifier: Layer,
  features: Array,
  size: tuple[int, int] | None = None,
) -> Array:
  """The student's logits by its projector and the teacher's classifier, each example's own.

  Args:
    aux: as the loss trained it.
    aux_state: as the loss left it.
    classifier: {"kernel": (features, classes), "bias": (classes,)}, as `kd.layers.classifier_of` reads it.
    features: (batch, ..., channels), the student's tap.
    size: height and width of the teacher's map, where the loss averaged the student's down to it.
  """

  def running(kept: Mapping[str, Array]) -> Normalise:
    mean, variance = (kept[name].astype(features.dtype) for name in ("mean", "variance"))
    return lambda x: (x - mean) * jax.lax.rsqrt(variance + EPSILON)

  x = features if size is None else pool_to(features, size)
  return linear(classifier, jnp.mean(flat_space(project(aux, x, [running(kept) for kept in aux_state])), 1))
