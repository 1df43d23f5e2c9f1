"""Channel-wise distillation: Shu, Liu, Gao, Yan, Shen, "Channel-wise Knowledge Distillation for Dense Prediction"
(arXiv:2011.13256), equations 3 and 4.

    p_c = softmax over places of teacher_c / T,   q_c = softmax over places of student_c / T
    loss_i = T^2 / channels * sum_c KL(p_c || q_c)

Where the numbers of channels differ, a trained 1x1 projector maps the student's to the teacher's; it has no bias, which
a softmax over places cancels. The larger of two maps is averaged down. Reduction: a sum over the places and a mean over
the channels, one number per example, summed over pairs of taps.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from kd.base import Schedule, at, kl, log_softmax
from kd.kinds import Context, Loss
from kd.maps import align, check_channels, compared, flat_space, linear_init, no_infinity
from kd.reads import PLACES, require_count
from kd.taps import Names, on_pairs
from leanax.core import ranges


def cwd(student: Names, teacher: Names, temperature: Schedule = 4.0) -> Loss:
  """Channel-wise distillation.

  Args:
    student: taps of maps (batch, height, width, channels) or token sequences.
    teacher: as many of the teacher.
    temperature: T > 0, of both softmaxes, or a schedule of it.
  """
  ranges.check("cwd: temperature", temperature, ranges.TEMPERATURE, varies=True)

  def log_places(x: Array, tau: Any) -> Array:
    """Returns log-probabilities over places, (batch * channels, places)."""
    maps = jnp.swapaxes(flat_space(no_infinity(x)), -1, -2)
    require_count("cwd", "places", maps.shape[-1])
    return log_softmax(maps.reshape(-1, maps.shape[-1]) / tau)

  def divergence(s: Array, t: Array, aux: dict[str, Array], context: Context) -> Array:
    tau = at(temperature, context.step)
    if aux:
      check_channels(aux["kernel"], s)
      s = s @ aux["kernel"].astype(s.dtype)
    s, t = align("cwd", s, t)
    compared("cwd", s, t)
    log_q, log_p = (log_places(x, tau) for x in (s, t))
    return tau**2 * jnp.mean(kl(log_p, log_q).reshape(len(t), -1), -1)

  def init(key: Array, s: Any, t: Any) -> dict[str, Array]:
    same = s.shape[-1] == t.shape[-1]
    return {} if same else {"kernel": linear_init(key, s.shape[-1], t.shape[-1])["kernel"]}

  return on_pairs("cwd", divergence, student, teacher, init, shapes=PLACES)
