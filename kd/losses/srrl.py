"""Softmax regression representation learning: Yang et al., "Knowledge distillation via softmax regression
representation learning" (ICLR 2021), section 3.

    h = r(f_s);   loss_i = a mean (h - f_t)^2 + b mean over classes of (W h - W f_t)^2

f are the features before the classifiers, W with its bias is the teacher's frozen classifier, copied to aux_state. r,
learned, is a linear map with batch normalisation and ReLU. `form="kl"` has KL(teacher || student) of the two softmaxes
in place of the squares; the paper has both and prefers the squares. Maps are compared place by place, the larger
averaged down, and are averaged over the places before W. Logs "matching" and "regression", the two
terms without a and b. Reduction: means, one number per example.
"""

import jax.numpy as jnp
from jaxtyping import Array

from kd import checks
from kd.base import kl, log_softmax
from kd.kinds import Context, Loss, LossOut, Outputs, Taps
from kd.layers import classifier_of, layer, layer_init, mean_square, relu
from kd.maps import align, compared, flat_space, linear
from kd.reads import CHANNELS
from kd.taps import Names, paired
from leanax.core import ranges
from leanax.core.errors import UserError


def srrl(
  student: Names,
  teacher: Names,
  classifier: str = "Dense_0",
  matching: float = 1.0,
  regression: float = 1.0,
  form: str = "l2",
) -> Loss:
  """Softmax regression representation learning.

  Args:
    student: one tap, the student's features before its classifier.
    teacher: one tap, the input of the teacher's classifier.
    classifier: path of the teacher's classifier.
    matching: a, 0 or more.
    regression: b, 0 or more.
    form: "l2" or "kl".
  """
  student_taps, teacher_taps = paired("srrl", student, teacher)
  if len(student_taps) > 1:
    raise UserError(f"srrl: {len(student_taps)} taps of each network; expected 1, the features before the classifier")
  if form not in ("l2", "kl"):
    raise UserError(f"srrl: form is {form!r}; expected 'l2' or 'kl'")
  ranges.check("srrl: matching", matching, ranges.NOT_NEGATIVE)
  ranges.check("srrl: regression", regression, ranges.NOT_NEGATIVE)

  def compare(s: Array, t: Array, class_mask: Array | None) -> Array:
    class_mask = checks.class_mask_of("srrl", class_mask, s.shape)
    if form == "kl":
      return kl(log_softmax(t, class_mask), log_softmax(s, class_mask))
    class_mask = jnp.ones(s.shape, bool) if class_mask is None else jnp.broadcast_to(class_mask, s.shape)
    return jnp.sum(jnp.where(class_mask, s - t, 0.0) ** 2, -1) / jnp.maximum(
      jnp.sum(class_mask.astype(s.dtype), -1), 1.0
    )

  def fn(s: Outputs, t: Outputs, context: Context) -> LossOut:
    x, target = align("srrl", s.taps[student_taps[0]], t.taps[teacher_taps[0]])
    x = relu(layer(context.aux, x, context))
    compared("srrl", x, target)
    predicted, wanted = (linear(context.aux_state, jnp.mean(flat_space(f), 1)) for f in (x, target))
    logs = {"matching": mean_square(x - target), "regression": compare(predicted, wanted, context.class_mask)}
    return LossOut(matching * logs["matching"] + regression * logs["regression"], logs=logs)

  def init(key: Array, s: Outputs, t: Outputs, variables):
    kept = classifier_of("srrl", variables, classifier)
    features = t.taps[teacher_taps[0]].shape[-1]
    if kept["kernel"].shape[0] != features:
      raise UserError(
        f"srrl: the classifier {classifier!r} reads {kept['kernel'].shape[0]} features and the teacher's tap has "
        f"{features}; expected the tap that it reads"
      )
    return layer_init(key, s.taps[student_taps[0]].shape[-1], features, normalise=True), kept

  return Loss(
    "srrl", fn, taps=Taps(student_taps, teacher_taps, CHANNELS), init_fn=init, relational=True, reads=("class_mask",)
  )
