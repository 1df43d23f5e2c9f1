"""The pair-wise loss of structured distillation against its equation with loops, by hand, and at its limits."""

import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import check, maps, value


def oracle(s, t):
  def affinity(x):
    x = x.reshape(-1, x.shape[-1])
    return np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in x] for a in x])

  return np.array([((affinity(a) - affinity(b)) ** 2).mean() for a, b in zip(s, t, strict=True)])


@pytest.mark.parametrize(("student", "teacher"), [((3, 4, 3), (3, 4, 5)), ((5, 4), (5, 2))])
def test_value_and_gradient_are_the_papers(student, teacher):
  check(kd.skd("tap", "tap"), oracle, maps(0, student), maps(1, teacher))


def test_by_hand():
  # The student's two places are orthogonal, the teacher's have a cosine of 3/5: two of four pairs differ by 0.6.
  s, t = np.array([[[[1.0, 0.0], [0.0, 2.0]]]]), np.array([[[[1.0, 0.0, 0.0], [3.0, 4.0, 0.0]]]])
  np.testing.assert_allclose(value(kd.skd("tap", "tap"), s, t), [0.36 / 2], rtol=1e-6)


def test_the_larger_map_is_averaged_down():
  large, teacher = maps(2, (4, 6, 3)), maps(3, (2, 3, 5))
  small = large.reshape(6, 2, 2, 3, 2, 3).mean((2, 4))
  np.testing.assert_allclose(
    value(kd.skd("tap", "tap"), large, teacher), value(kd.skd("tap", "tap"), small, teacher), rtol=1e-5
  )


def test_scales_of_places_and_rotations_of_channels_do_not_matter():
  s, t = maps(4, (3, 3, 4)), maps(5, (3, 3, 4))
  loss = kd.skd("tap", "tap")
  turn = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
  scales = np.random.default_rng(1).uniform(0.1, 9, (1, 3, 3, 1))
  np.testing.assert_allclose(value(loss, scales * s @ turn, t), value(loss, s, t), rtol=1e-4)
  np.testing.assert_allclose(value(loss, s, scales * s @ turn), 0.0, atol=1e-10)


def test_mistakes_are_named():
  for s, t, sentence in (
    ((5,), (5,), r"the loss 'skd' reads 'tap' of the student, of shape \(6, 5\); expected \(batch, height, width"),
    ((1, 1, 4), (1, 1, 4), "the loss 'skd' compares places and got 1; expected 2 or more"),
    ((3, 4), (5, 4), "skd: a tap of shape .* cannot be compared"),
  ):
    with pytest.raises(UserError, match=sentence):
      value(kd.skd("tap", "tap"), maps(0, s), maps(1, t))
  assert jnp.all(jnp.isnan(value(kd.skd("tap", "tap"), np.full((6, 2, 2, 3), np.nan), maps(0, (2, 2, 3)))))
