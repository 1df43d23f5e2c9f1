"""Reused teacher classifier: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier"
(arXiv:2203.14001), equations 3 and 4.

    loss_i = mean over places and channels of (p(f_s) - f_t)^2,   logits at inference = W mean over places of p(f_s) + b

f_t are the teacher's features before its classifier (W, b), most often the last map before the pooling. p, learned, is
a bottleneck: 1x1 to 1/factor of the teacher's channels, 3x3, 1x1 to all of them, each with batch normalisation and ReLU
(all three are linear maps for vectors and tokens). The larger of two maps is averaged down first. The paper trains with
this loss alone. Reduction: a mean, one number per example.

The deployed student is its layers up to the tap, then p, then W and b. Running means of p's batch statistics are kept
in aux_state; `simkd_head` folds them into p's kernels and biases, and `simkd_steps` lists the layers after the tap. A
stage with this loss returns that model, without the student's own layers after the tap, which are not trained.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kd.kinds import Context, Loss, LossOut, Outputs, Taps
from kd.layers import Layer, Normalise, classifier_of, last_layer, layer, layer_init, mean_square, relu
from kd.maps import align, batch_normalise, compared, moments, some_count
from kd.reads import CHANNELS
from kd.taps import Names, paired
from leanax.core import ranges
from leanax.core.errors import UserError
from leanax.graph.head import run

EPSILON = 1e-5  # of the batch normalisations


def simkd(student: Names, teacher: Names, factor: int = 2, momentum: float = 0.9, classifier: str = "") -> Loss:
  """Reused teacher classifier.

  Args:
    student: one tap, the student's last features.
    teacher: one tap, the teacher's features before its classifier, pooled or not.
    factor: the teacher's number of features over that of the bottleneck.
    momentum: of the running means, between 0 and 1.
    classifier: path of the teacher's classifier; "" for its one linear layer from the tap's features to the student's
      classes.
  """
  student_taps, teacher_taps = paired("simkd", student, teacher)
  if len(student_taps) > 1:
    raise UserError(f"simkd: {len(student_taps)} taps of each network; expected 1, the features before the classifier")
  ranges.check("simkd: factor", factor, ranges.POSITIVE)
  ranges.check("simkd: momentum", momentum, ranges.BELOW_ONE)

  def fn(s: Outputs, t: Outputs, context: Context) -> LossOut:
    batch_statistics = []

    def normalise(x: Array) -> Array:
      mean, variance = jax.lax.stop_gradient(moments(x, context))
      batch_statistics.append({"mean": mean, "variance": variance})
      return batch_normalise(x, context, EPSILON)

    x, target = align("simkd", s.taps[student_taps[0]], t.taps[teacher_taps[0]])
    x = project(context.aux, x, [normalise] * 3)
    compared("simkd", x, target)
    some = some_count(context)  # without valid examples, the running means stay

    def moving_average(old: Array, new: Array) -> Array:
      return jnp.where(some, momentum * old + (1 - momentum) * new.astype(old.dtype), old)

    return LossOut(mean_square(x - target), jax.tree.map(moving_average, context.aux_state, batch_statistics))

  def init(key: Array, s: Outputs, t: Outputs, variables):
    del variables
    wide = t.taps[teacher_taps[0]].shape[-1]
    narrow = max(1, wide // factor)
    sizes = (s.taps[student_taps[0]].shape[-1], narrow, narrow, wide)
    sides = (1, 3 if len(t.taps[teacher_taps[0]].shape) == 4 else 1, 1)
    keys = jax.random.split(key, 3)
    aux = [layer_init(k, a, b, n, True) for k, a, b, n in zip(keys, sizes[:-1], sizes[1:], sides, strict=True)]
    return aux, [{"mean": jnp.zeros_like(a["offset"]), "variance": jnp.ones_like(a["scale"])} for a in aux]

  def head(aux: Any, aux_state: Any, variables: Any, classes: int, chosen: Sequence[int] = ()) -> dict[str, Layer]:
    wide, least = aux[-1]["kernel"].shape[-1], max(chosen) + 1 if chosen else classes
    path = classifier or last_layer("simkd", variables, wide, least, exactly=not chosen)
    reads, gives = classifier_of("simkd", variables, path)["kernel"].shape
    if reads != wide or (gives < least if chosen else gives != classes):
      raise UserError(
        f"simkd: the classifier {path!r} maps {reads} features to {gives} classes; the teacher's tap has {wide}, and "
        f"the student {classes} classes"
      )
    return simkd_head(aux, aux_state, variables, path, chosen)

  return Loss("simkd", fn, taps=Taps(student_taps, teacher_taps, CHANNELS), init_fn=init, relational=True, head=head)


def project(aux: Sequence[Layer], x: Array, normalise: Sequence[Normalise]) -> Array:
  """Applies the projector p, with one function per batch normalisation."""
  for part, f in zip(aux, normalise, strict=True):
    x = relu(layer(part, x, f))
  return x


LAYERS = ("narrow", "window", "widen")  # of the projector in a head


def simkd_head(
  aux: Sequence[Layer],
  aux_state: Sequence[Mapping[str, Array]],
  variables: Any,
  classifier: str,
  chosen: Sequence[int] = (),
) -> dict[str, Layer]:
  """Returns the deployed head: the projector with its running statistics folded in, and the teacher's classifier.

  Args:
    aux: the trained parameters of the loss.
    aux_state: the final state of the loss.
    variables: {"params": tree, ...} of the teacher.
    classifier: path of its classifier.
    chosen: the columns of the classifier to keep, in this order; () for all.

  Returns:
    {"narrow", "window", "widen", "classifier"}, {"kernel", "bias"} each; of maps all but the last are convolutions.
  """
  head = {}
  for name, part, kept in zip(LAYERS, aux, aux_state, strict=True):
    slope = part["scale"] * jax.lax.rsqrt(kept["variance"] + EPSILON)
    kernel = part["kernel"] * slope
    if aux[1]["kernel"].ndim == 4 and kernel.ndim == 2:
      kernel = kernel[None, None]
    head[name] = {"kernel": kernel, "bias": part["offset"] - kept["mean"] * slope}
  last = classifier_of("simkd", variables, classifier)
  if chosen:
    last = {name: leaf[..., np.asarray(chosen)] for name, leaf in last.items()}
  return {**head, "classifier": last}


def simkd_steps(size: tuple[int, int] | None = None) -> list[list[Any]]:
  """Returns the head as data (`graph.replace_head`): the projector, the mean over places, the teacher's classifier.

  Args:
    size: height and width of the maps that the loss compared; None for other shapes.
  """
  projector = [step for name in LAYERS for step in (["layer", name], ["relu"])]
  return [*([] if size is None else [["pool", list(size)]]), *projector, ["mean"], ["layer", "classifier"]]


def simkd_logits(head: Mapping[str, Layer], features: Array, size: tuple[int, int] | None = None) -> Array:
  """Returns the student's logits from its projector and the teacher's classifier.

  Args:
    head: of `simkd_head`.
    features: (batch, ..., channels), the student's tap.
    size: height and width of the maps that the loss compared; None for other shapes.
  """
  return run(simkd_steps(size), head, features)
