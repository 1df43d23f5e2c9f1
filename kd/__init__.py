"""Knowledge distillation: pure losses between a student's and a teacher's outputs, one file per loss.

>>> import jax.numpy as jnp
>>> import kd
>>> student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[4.0, 1.0, 0.0]])
>>> loss = kd.hinton(temperature=4.0)  # (student logits, teacher logits) -> a number per example
>>> per_example, _, _ = loss(student, teacher)
>>> print(f"{per_example[0]:.3f}")
0.498
>>> objective = kd.weighted([kd.Term("hard", kd.hard_labels(), 0.1), kd.Term("soft", loss, 0.9)])
>>> total, _, logs = objective(student, teacher, {"label": jnp.array([0])})
>>> print(f"{total:.3f} = 0.1 * {logs['hard']:.3f} + 0.9 * {logs['soft']:.3f}")
0.489 = 0.1 * 0.408 + 0.9 * 0.498
"""

from kd import schedules
from kd.base import cross_entropy, kl, log_softmax, loss, teacher_at
from kd.counting import batch_mean
from kd.kinds import Context, Loss, LossOut, Outputs, Taps
from kd.labels import labelled
from kd.losses.ab import ab
from kd.losses.abkd import abkd
from kd.losses.absolute_error import absolute_error
from kd.losses.at import at
from kd.losses.bernoulli_kl import bernoulli_kl
from kd.losses.byot import byot
from kd.losses.cc import cc
from kd.losses.crd import crd
from kd.losses.ctkd import ctkd
from kd.losses.cwd import cwd
from kd.losses.dist import dist
from kd.losses.dkd import dkd
from kd.losses.fitnet import fitnet
from kd.losses.fsp import fsp
from kd.losses.ft import ft
from kd.losses.hard_labels import hard_labels
from kd.losses.hinton import hinton
from kd.losses.huber import huber
from kd.losses.ickd import ickd
from kd.losses.jsd import jsd
from kd.losses.kdsvd import kdsvd
from kd.losses.label_smoothing import label_smoothing
from kd.losses.logit_l2 import logit_l2
from kd.losses.logit_standardisation import logit_standardisation
from kd.losses.mgd import mgd
from kd.losses.mlkd import mlkd
from kd.losses.nkd import nkd
from kd.losses.nst import nst
from kd.losses.ofd import ofd
from kd.losses.pkt import pkt
from kd.losses.reverse_kl import reverse_kl
from kd.losses.review import review
from kd.losses.rkd import rkd
from kd.losses.sigmoid_cross_entropy import sigmoid_cross_entropy
from kd.losses.simkd import simkd, simkd_head, simkd_logits, simkd_steps
from kd.losses.skd import skd
from kd.losses.skew_kl import skew_kl
from kd.losses.soft_labels import soft_labels
from kd.losses.sp import sp
from kd.losses.squared_error import squared_error
from kd.losses.srrl import srrl
from kd.losses.tf_kd import tf_kd
from kd.losses.topk import topk
from kd.losses.total_variation import total_variation
from kd.losses.vid import vid
from kd.losses.wsld import wsld
from kd.objective import Weighted, weighted
from kd.taps import on_pairs
from kd.terms import Term
from kd.trainers import dot, scale_by_dot, wants_task

__all__ = [
  "Term",
  "Weighted",
  "weighted",
  "batch_mean",
  "Context",
  "Loss",
  "LossOut",
  "Outputs",
  "Taps",
  "ab",
  "abkd",
  "absolute_error",
  "at",
  "bernoulli_kl",
  "byot",
  "cc",
  "crd",
  "cross_entropy",
  "ctkd",
  "cwd",
  "dist",
  "dkd",
  "dot",
  "fitnet",
  "fsp",
  "ft",
  "hard_labels",
  "hinton",
  "huber",
  "ickd",
  "jsd",
  "kdsvd",
  "kl",
  "label_smoothing",
  "labelled",
  "log_softmax",
  "logit_l2",
  "logit_standardisation",
  "loss",
  "mgd",
  "mlkd",
  "nkd",
  "nst",
  "ofd",
  "on_pairs",
  "pkt",
  "reverse_kl",
  "review",
  "rkd",
  "scale_by_dot",
  "schedules",
  "sigmoid_cross_entropy",
  "simkd",
  "simkd_head",
  "simkd_logits",
  "simkd_steps",
  "skd",
  "skew_kl",
  "soft_labels",
  "sp",
  "squared_error",
  "srrl",
  "teacher_at",
  "tf_kd",
  "topk",
  "total_variation",
  "vid",
  "wants_task",
  "wsld",
]
