"""Relations in place of values: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher"
(arXiv:2205.10536), equations 8 to 10, on logits.

    p = softmax(teacher / tau),  q = softmax(student / tau),  rho = Pearson's correlation
    inter_i = 1 - rho over the classes of (p_i, q_i)
    intra   = 1 - mean over classes c of rho over the batch of (p_.c, q_.c)
    loss_i  = tau^2 (beta inter_i + gamma intra)

The authors' code multiplies by tau^2; the paper's listing does not (`squared=False`). The code adds 1e-8 to the product
of the norms, which shrinks the correlation of a rare class; here nothing is added. A correlation with a constant is 0.
Each row and column of probabilities is divided by its largest entry, which leaves the correlation unchanged and keeps
rare classes from underflow. The batch is that of all devices; for logits (batch, *positions, classes) every position is
an example. Reduction: one number per example; all have the same intra.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd.base import ClassMask, Logits, PerExample, Schedule, at, log_softmax, loss
from kd.kinds import Loss
from kd.logits import not_excluded
from kd.maps import unit
from kd.reads import require_count
from leanax.core import axis, ranges


def dist(beta: float = 1.0, gamma: float = 1.0, tau: Schedule = 1.0, squared: bool = True) -> Loss:
  """Correlations between classes and between examples.

  Args:
    beta: weight of the relation between the classes of an example.
    gamma: weight of the relation between the examples of a class.
    tau: temperature, above 0, or a schedule of it; the authors take 1 on ImageNet, 4 on CIFAR-100.
    squared: multiply by tau^2, as in the authors' code.
  """
  ranges.check("dist: beta", beta, ranges.NOT_NEGATIVE)
  ranges.check("dist: gamma", gamma, ranges.NOT_NEGATIVE)
  ranges.check_switch("dist: squared", squared)
  ranges.check("dist: tau", tau, ranges.TEMPERATURE, varies=True)

  def relation(
    student: Logits,
    teacher: Logits,
    *,
    class_mask: ClassMask | None,
    valid: Array | None,
    axis_name: str | None,
    step: Array | int,
  ) -> PerExample:
    require_count("dist", "examples of a batch", len(student) * axis.size(axis_name))
    t = at(tau, step)
    log_q, log_p = log_softmax(student / t, class_mask), log_softmax(teacher / t, class_mask)
    used = not_excluded(student, teacher, class_mask)
    inter = jnp.where(jnp.any(used, 1), 1 - _correlation(log_q, log_p, used, 1), 0.0)
    used = used if valid is None else used & valid[:, None]
    every = axis.gather(used, axis_name)
    columns = _correlation(axis.gather(log_q, axis_name), axis.gather(log_p, axis_name), every, 0)
    present = jnp.any(every, 0)
    classes = jnp.maximum(jnp.sum(present.astype(columns.dtype)), 1.0)
    intra = 1 - jnp.sum(jnp.where(present, columns, 0.0)) / classes
    return (t**2 if squared else 1.0) * (beta * inter + gamma * intra)

  return loss(relation, "dist", reads=("class_mask", "valid", "axis_name", "step"), relational=True, temperature=tau)


def _correlation(a: Array, b: Array, used: Array, along: int) -> Array:
  """Returns Pearson's correlation of exp(a) and exp(b) along an axis, over the valid entries."""
  return jnp.sum(_centred(a, used, along) * _centred(b, used, along), along)


def _centred(logarithms: Array, used: Array, along: int) -> Array:
  """Returns exponentials minus their mean over the valid entries, divided by their norm; 0 where constant."""
  logarithms = jnp.where(used, logarithms, jnp.finfo(logarithms.dtype).min / 2)
  top = jax.lax.stop_gradient(jnp.max(logarithms, along, keepdims=True))
  top = jnp.where(top == -jnp.inf, 0.0, top)  # one network excludes the class in every example: constant
  x = jnp.where(used, jnp.exp(logarithms - top), 0.0)
  count = jnp.maximum(jnp.sum(used.astype(x.dtype), along, keepdims=True), 1.0)
  return unit(jnp.where(used, x - jnp.sum(x, along, keepdims=True) / count, 0.0), along)
