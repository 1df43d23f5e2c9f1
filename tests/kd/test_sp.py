"""Similarity-preserving distillation against the paper's equations, by hand, and at its limits."""

import numpy as np

import kd
from tests.kd.nets import BATCH, check, maps, value


def oracle(s, t):
  def similarity(x):
    gram = x.reshape(len(x), -1) @ x.reshape(len(x), -1).T
    return gram / np.linalg.norm(gram, axis=-1, keepdims=True)

  return ((similarity(t) - similarity(s)) ** 2).sum(-1) / BATCH


def test_value_and_gradient_are_the_papers():
  check(kd.sp("tap", "tap"), oracle, maps(0, (4, 4, 3)), maps(1, (2, 2, 7)))


def test_by_hand():
  # G_s is the identity; the teacher's rows are equal, so its rows of G are (1, 1) / sqrt(2).
  s, t = np.eye(2), np.ones((2, 3))
  expected = ((1 - np.sqrt(0.5)) ** 2 + 0.5) / 2
  np.testing.assert_allclose(value(kd.sp("tap", "tap"), s, t), [expected, expected], rtol=1e-6)


def test_rotations_and_scales_do_not_matter():
  s, t = maps(2, (5,)), maps(3, (7,))
  rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
  np.testing.assert_allclose(value(kd.sp("tap", "tap"), s, 3 * s @ rotation), 0.0, atol=1e-9)
  np.testing.assert_allclose(value(kd.sp("tap", "tap"), s @ rotation, t), value(kd.sp("tap", "tap"), s, t), rtol=1e-4)
