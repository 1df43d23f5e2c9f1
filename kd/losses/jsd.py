"""Generalised Jensen-Shannon divergence: Agarwal et al., "On-Policy Distillation of Language Models" (GKD,
arXiv:2306.13649), section 2.

    m = beta p + (1 - beta) q,   loss_i = T^2 * [beta KL(p || m) + (1 - beta) KL(q || m)]
    p = softmax(teacher_i / T),  q = softmax(student_i / T)

Convention: beta is the teacher's weight in the mixture and in the sum, as in the paper and in TRL. So loss / beta tends
to the forward KL(p || q) as beta tends to 0, and loss / (1 - beta) to the reverse KL(q || p) as beta tends to 1; the
loss itself tends to 0 at both ends. Beta 0 and 1 are therefore refused (TRL jumps there to the undivided divergences):
use `hinton` and `reverse_kl`. beta = 0.5 is the symmetric divergence, at most log 2.
T^2 as in `hinton`; the paper has T = 1. Reduction: a sum over the classes, one number per example.
"""

from jaxtyping import Array

from kd.base import ClassMask, Logits, PerExample, Schedule, at, kl, log_softmax, loss
from kd.kinds import Loss
from kd.logits import log_mixture
from leanax.core import ranges


def jsd(beta: float = 0.5, temperature: Schedule = 1.0) -> Loss:
  """Generalised Jensen-Shannon divergence.

  Args:
    beta: the teacher's weight, above 0 and below 1.
    temperature: T > 0, of both softmaxes, or a schedule of it.
  """
  ranges.check("jsd: beta", beta, ranges.INSIDE)
  ranges.check("jsd: temperature", temperature, ranges.TEMPERATURE, varies=True)

  def divergence(student: Logits, teacher: Logits, *, class_mask: ClassMask | None, step: Array | int) -> PerExample:
    t = at(temperature, step)
    log_p, log_q = log_softmax(teacher / t, class_mask), log_softmax(student / t, class_mask)
    log_m = log_mixture(log_p, log_q, beta, class_mask)
    return t**2 * (beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m))

  return loss(divergence, "jsd", reads=("class_mask", "step"), temperature=temperature)
