"""Self distillation from deep to shallow: Zhang et al., "Be Your Own Teacher: Improve the Performance of Convolutional
Neural Networks via Self Distillation" (arXiv:1905.08094), section 3.

    loss_i = sum over branches b of  (1 - alpha) (-log q_b[label])  +  alpha T^2 KL(p || q_b)  +  lambda |F_b - F|^2

p and q_b are the softmaxes at temperature T of the network's own logits and of the branch's (the first term's has
temperature 1); F is the mean over places of the deepest tap, F_b the branch's features, which a linear map turns into
its logits. p and F are constants. There is no teacher; add `hard_labels` for the deepest classifier's own loss.

Variant: a branch is a 1x1 convolution to the deepest tap's channels, a ReLU, the mean over places, and the linear
classifier. The paper's bottlenecks are blocks of convolutions with batch norms that bring the map to the deepest size;
ours have no statistics, so an example's loss does not depend on the others. The factor T^2 keeps the gradient's size,
as in `hinton`. The branches are dropped after training. Reduction: sums over channels and classes, one number per
example, summed over the branches.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd.base import Schedule, at, kl, log_softmax, pick
from kd.inputs import read
from kd.kinds import Context, Loss, LossOut, Outputs, Taps
from kd.layers import layer, layer_init, relu
from kd.logits import by_label
from kd.maps import flat_space
from kd.reads import CHANNELS
from kd.taps import Names, named
from leanax.core import ranges
from leanax.core.errors import UserError


def byot(student: Names, alpha: float = 0.3, lam: float = 0.03, temperature: Schedule = 3.0) -> Loss:
  """Be your own teacher.

  Args:
    student: two or more taps from shallow to deep, of maps, token sequences or vectors; each but the last gets a
      branch, whose features are compared with the last.
    alpha: weight of the divergence from the deepest classifier, from 0 to 1; the labels have the weight 1 - alpha.
    lam: weight of the features, 0 or more.
    temperature: T > 0, of both softmaxes of the divergence, or a schedule of it.
  """
  taps = named("byot", "student", student)
  if len(taps) < 2:
    raise UserError(f"byot: {len(taps)} taps; expected two or more, from shallow to deep")
  *shallow, deepest = taps
  ranges.check("byot: alpha", alpha, ranges.SHARE)
  ranges.check("byot: lam", lam, ranges.NOT_NEGATIVE)
  ranges.check("byot: temperature", temperature, ranges.TEMPERATURE, varies=True)

  def fn(s: Outputs, t: Any, context: Context) -> LossOut:
    del t
    logits_as_rows(s.logits)
    given = read("byot", s.logits, None, context.batch, context.class_mask)
    index = given.labels()
    own, target = jax.lax.stop_gradient((given.student, flat_space(s.taps[deepest]).mean(1)))
    tau = at(temperature, context.step)
    log_p = log_softmax(own / tau, given.class_mask)

    def branch(aux: dict[str, Any], tap: Array) -> Array:
      features = relu(layer(aux["bottleneck"], flat_space(tap), context)).mean(1)
      logits = layer(aux["classifier"], features, context)
      log_q = log_softmax(logits, given.class_mask)
      labels = -by_label(lambda index: pick(log_q, index), index)
      divergence = tau**2 * kl(log_p, log_softmax(logits / tau, given.class_mask))
      return (1 - alpha) * labels + alpha * divergence + lam * jnp.sum((features - target) ** 2, -1)

    parts = [branch(aux, s.taps[name]) for aux, name in zip(context.aux, shallow, strict=True)]
    return LossOut(given.per_example(sum(parts[1:], parts[0]), index.wrong))

  def init(key: Array, s: Outputs, t: Any, variables: Any) -> tuple[Any, Any]:
    del t, variables
    logits_as_rows(s.logits)
    width, classes = s.taps[deepest].shape[-1], s.logits.shape[-1]
    out = []
    for name, one in zip(shallow, jax.random.split(key, len(shallow)), strict=True):
      first, last = jax.random.split(one)
      branch = {"bottleneck": layer_init(first, s.taps[name].shape[-1], width)}
      out.append({**branch, "classifier": layer_init(last, width, classes)})
    return out, None

  return Loss(
    "byot",
    fn,
    taps=Taps((*shallow, deepest), (), CHANNELS),
    init_fn=init,
    reads=("logits", "class_mask", "label"),
    needs_teacher=False,
  )


def logits_as_rows(logits: Any) -> None:
  """Refuses logits, or their shape, that are not floats (batch, classes) of two classes or more."""
  shape, dtype = getattr(logits, "shape", ()), getattr(logits, "dtype", None)
  if dtype is None or not jnp.issubdtype(dtype, jnp.floating) or len(shape) != 2 or shape[1] < 2:
    got = type(logits).__name__ if dtype is None else f"{dtype} {shape}"
    raise UserError(
      f"the loss 'byot' reads logits (batch, classes), floats of 2 classes or more, of the student; got {got}"
    )
