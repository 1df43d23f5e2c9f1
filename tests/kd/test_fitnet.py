"""FitNets' hints against the equation in float64, by hand, and at their limits."""

import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import check, maps, value
from tests.kd.oracles import begin, layer64, pool64


@pytest.mark.sampled(3)
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(("student_shape", "teacher_shape"), [((4, 4, 3), (4, 4, 5)), ((7,), (3,)), ((5, 3), (5, 4))])
def test_value_and_gradient_are_the_papers(normalise, student_shape, teacher_shape):
  loss, s, t = kd.fitnet("tap", "tap", normalise), maps(0, student_shape), maps(1, teacher_shape)
  given = begin(loss, s, t)

  def oracle(s, t):
    guess = layer64(given["aux"][0], s)
    gap = (np.maximum(guess, 0) if normalise else guess) - t
    return (gap**2).reshape(len(s), -1).mean(-1)

  check(loss, oracle, s, t, **given)


def test_by_hand():
  # r doubles and adds 1: (2 * 1 + 1 - 4)^2 and (2 * 3 + 1 - 4)^2, of which the mean is 5.
  aux = [{"kernel": np.array([[2.0]]), "bias": np.array([1.0])}]
  np.testing.assert_allclose(value(kd.fitnet("tap", "tap"), [[[1.0], [3.0]]], [[[4.0], [4.0]]], aux=aux), [5.0])


def test_the_larger_map_is_averaged_down():
  loss, s, t = kd.fitnet("tap", "tap"), maps(0, (4, 4, 3)), maps(1, (2, 2, 5))
  given = begin(loss, s, t)
  np.testing.assert_allclose(value(loss, s, t, **given), value(loss, pool64(s, 2, 2), t, **given), rtol=1e-5)


def test_the_teachers_own_features_cost_nothing():
  x = maps(0, (2, 2, 3))
  aux = [{"kernel": np.eye(3), "bias": np.zeros(3)}]
  np.testing.assert_allclose(value(kd.fitnet("tap", "tap"), x, x, aux=aux), 0.0, atol=1e-12)


def test_mistakes_are_named():
  with pytest.raises(UserError, match="fitnet: 1 taps of the student and 2 of the teacher; expected pairs"):
    kd.fitnet("tap", ("tap", "other"))
  with pytest.raises(UserError, match="fitnet: a tap of shape .* of the student cannot be compared with one of"):
    value(kd.fitnet("tap", "tap"), maps(0, (4, 4, 3)), maps(1, (5,)), aux=[{}])


def test_is_relational_where_it_normalises():
  assert kd.fitnet("tap", "tap", normalise=True).relational and not kd.fitnet("tap", "tap").relational
