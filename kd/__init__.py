"""Knowledge distillation: pure losses between a student's and a teacher's outputs, one a file.

loss = kd.hinton(temperature=4.0)
per_example, _, _ = loss(student_logits, teacher_logits)
"""

from kd import schedules
from kd.ab import ab
from kd.at import at
from kd.base import Loss, Outputs, cross_entropy, kl, lift, log_softmax, needs_teacher, relational, teacher_at
from kd.bernoulli_kl import bernoulli_kl
from kd.byot import byot
from kd.cc import cc
from kd.crd import crd
from kd.ctkd import ctkd
from kd.cwd import cwd
from kd.dist import dist
from kd.dkd import dkd
from kd.fitnet import fitnet
from kd.fsp import fsp
from kd.ft import ft
from kd.hard_labels import hard_labels
from kd.hinton import hinton
from kd.huber import huber
from kd.ickd import ickd
from kd.jsd import jsd
from kd.kdsvd import kdsvd
from kd.label_smoothing import label_smoothing
from kd.labels import labelled
from kd.logit_l2 import logit_l2
from kd.logit_standardisation import logit_standardisation
from kd.mgd import mgd
from kd.mlkd import mlkd
from kd.nkd import nkd
from kd.nst import nst
from kd.ofd import ofd
from kd.pkt import pkt
from kd.reverse_kl import reverse_kl
from kd.review import review
from kd.rkd import rkd
from kd.sigmoid_cross_entropy import sigmoid_cross_entropy
from kd.simkd import simkd, simkd_head, simkd_logits
from kd.skew_kl import skew_kl
from kd.soft_labels import soft_labels
from kd.sp import sp
from kd.squared_error import squared_error
from kd.srrl import srrl
from kd.taps import About, TapLoss, on_pairs
from kd.tf_kd import tf_kd
from kd.topk import topk
from kd.total_variation import total_variation
from kd.trainers import dot, scale_by_dot, wants_task
from kd.vid import vid
from kd.wsld import wsld

__all__ = [
  "About",
  "Loss",
  "Outputs",
  "TapLoss",
  "ab",
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
  "lift",
  "log_softmax",
  "logit_l2",
  "logit_standardisation",
  "mgd",
  "mlkd",
  "needs_teacher",
  "nkd",
  "nst",
  "ofd",
  "on_pairs",
  "pkt",
  "relational",
  "reverse_kl",
  "review",
  "rkd",
  "scale_by_dot",
  "schedules",
  "sigmoid_cross_entropy",
  "simkd",
  "simkd_head",
  "simkd_logits",
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
