"""Attention transfer against the paper's equation, by hand, and at its limits."""

import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import check, maps, value


def attention64(x, power):
  q = (np.abs(x) ** power).mean(-1).reshape(len(x), -1)
  return q / np.linalg.norm(q, axis=-1, keepdims=True)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("paper", [False, True])
def test_value_and_gradient_are_the_papers(power, paper):
  def oracle(s, t):
    gap = attention64(s, power) - attention64(t, power)
    return np.linalg.norm(gap, axis=-1) if paper else (gap**2).mean(-1)

  check(kd.at("tap", "tap", power, paper), oracle, maps(0, (4, 4, 3)), maps(1, (4, 4, 7)))


def test_the_larger_map_is_averaged_down():
  large = maps(2, (6, 4, 3))
  small = large.reshape(6, 3, 2, 2, 2, 3).mean((2, 4))
  teacher = maps(3, (3, 2, 5))
  np.testing.assert_allclose(
    value(kd.at("tap", "tap"), large, teacher), value(kd.at("tap", "tap"), small, teacher), rtol=1e-5
  )


def test_by_hand():
  # Two places of one channel: Q = (9, 16) and (16, 9), norm sqrt(337); the mean of the squared gaps is 49 / 337.
  s, t = np.array([[[[3.0], [4.0]]]]), np.array([[[[-4.0], [3.0]]]])
  np.testing.assert_allclose(value(kd.at("tap", "tap"), s, t), [49 / 337], rtol=1e-6)


def test_a_scale_does_not_matter():
  s, t = maps(4, (4, 4, 3)), maps(5, (4, 4, 3))
  np.testing.assert_allclose(value(kd.at("tap", "tap"), 7 * s, t), value(kd.at("tap", "tap"), s, t), rtol=1e-5)
  np.testing.assert_allclose(value(kd.at("tap", "tap"), s, -2 * s), 0.0, atol=1e-12)


def test_mistakes_are_named():
  with pytest.raises(UserError, match="at: power is 0; expected a number, 1 or more"):
    kd.at("tap", "tap", power=0)
  with pytest.raises(UserError, match="at: 1 taps of the student and 2 of the teacher; expected pairs"):
    kd.at("tap", ("tap", "other"))
  with pytest.raises(
    UserError, match=r"the loss 'at' reads 'tap' of the teacher, of shape \(6, 5\); expected \(batch, height, width"
  ):
    value(kd.at("tap", "tap"), maps(0, (4, 4, 3)), maps(1, (5,)))
