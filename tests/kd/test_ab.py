"""Activation boundaries against the paper's table of cases in float64, by hand, and at their limits."""

import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import BATCH, check, maps, value
from tests.kd.oracles import begin, layer64


@pytest.mark.parametrize("margin", [0.5, 2.0])
@pytest.mark.parametrize(("student_shape", "teacher_shape"), [((4, 4, 3), (4, 4, 5)), ((7,), (3,))])
def test_value_and_gradient_are_the_papers(margin, student_shape, teacher_shape):
  loss, s, t = kd.ab("tap", "tap", margin), maps(0, student_shape), maps(1, teacher_shape)
  given = begin(loss, s, t)

  def oracle(s, t):
    guess, out = layer64(given["aux"][0], s), np.zeros(len(s))
    for i in range(len(s)):
      for one, target in zip(guess[i].flat, t[i].flat, strict=True):
        if target <= 0 and one > -margin:
          out[i] += (one + margin) ** 2
        if target > 0 and one <= margin:
          out[i] += (one - margin) ** 2
    return out

  check(loss, oracle, s, t, **given)


def ready(signs):
  """A connector whose outputs are exactly the offsets: its scale is 0."""
  return [{"kernel": np.ones((2, len(signs))), "scale": np.zeros(len(signs)), "offset": np.asarray(signs, float)}]


def test_by_hand():
  # Offsets (2, -2, 0.5) with margin 1, teacher on, on, off: nothing, (-2 - 1)^2, (0.5 + 1)^2.
  s, t = maps(0, (2,)), np.tile([0.1, 7.0, -3.0], (BATCH, 1))
  np.testing.assert_allclose(value(kd.ab("tap", "tap"), s, t, aux=ready([2, -2, 0.5])), 9 + 2.25, rtol=1e-6)


def test_only_the_sign_of_the_teacher_is_read():
  loss, s, t = kd.ab("tap", "tap"), maps(0, (4, 4, 3)), maps(1, (4, 4, 5))
  given = begin(loss, s, t)
  np.testing.assert_array_equal(value(loss, s, t, **given), value(loss, s, np.sign(t), **given))


def test_nothing_beyond_the_margins():
  t = maps(1, (2,))
  t[:, 0], t[:, 1] = 1, -1
  np.testing.assert_array_equal(value(kd.ab("tap", "tap"), maps(0, (2,)), t, aux=ready([1.5, -1.5])), 0.0)


def test_mistakes_are_named():
  with pytest.raises(UserError, match="ab: margin is 0; expected a number above 0"):
    kd.ab("tap", "tap", margin=0)
