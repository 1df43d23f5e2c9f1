"""Variational information distillation against the paper's likelihood (scipy's normal), by hand, and at its limits."""

import jax
import numpy as np
import pytest
from scipy.stats import norm

import kd
from leanax.core.errors import UserError
from tests.kd.nets import check, maps, value
from tests.kd.oracles import begin, layer64


@pytest.mark.parametrize(("student_shape", "teacher_shape"), [((4, 4, 3), (4, 4, 5)), ((7,), (3,))])
def test_value_and_gradient_are_the_papers(student_shape, teacher_shape):
  loss, s, t = kd.vid("tap", "tap"), maps(0, student_shape), maps(1, teacher_shape)
  given = begin(loss, s, t)

  def oracle(s, t):
    aux = given["aux"][0]
    first, second, third = aux["mean"]
    mean = layer64(third, np.maximum(layer64(second, np.maximum(layer64(first, s), 0)), 0))
    deviation = np.sqrt(np.log1p(np.exp(aux["variance"])) + 1e-5)
    likelihood = -norm.logpdf(t, mean, deviation) - np.log(2 * np.pi) / 2
    return likelihood.reshape(len(s), -1).mean(-1)

  check(loss, oracle, s, t, **given)


def test_by_hand():
  # A dead regressor gives 0 and the variance is 4: (2^2 / 4 + log 4) / 2.
  loss, s, t = kd.vid("tap", "tap", variance=4.0), np.ones((1, 3)), np.full((1, 2), 2.0)
  given = loss.init(jax.random.key(0), kd.Outputs(s, {"tap": s}), kd.Outputs(t, {"tap": t}), None)[0]
  given[0]["mean"] = jax.tree.map(lambda a: 0 * a, given[0]["mean"])
  np.testing.assert_allclose(value(loss, s, t, aux=given), [(1 + np.log(4)) / 2], rtol=1e-6)


def test_the_best_variance_is_the_squared_error():
  """The gradient to the variance is 0 where the variance is that of the teacher about the regressor's guess."""
  s, t = np.ones((1, 3)), np.full((1, 2), 2.0)
  loss = kd.vid("tap", "tap")
  aux = jax.tree.map(lambda a: 0 * a, begin(loss, s, t)["aux"])
  for variance, sign in ((4 - 1e-5, 0), (3.0, -1), (5.0, 1)):
    aux[0]["variance"] = np.full(2, np.log(np.expm1(variance)), np.float32)
    slope = jax.grad(lambda aux: value(loss, s, t, aux=aux).sum())(jax.tree.map(np.float32, aux))[0]["variance"]
    assert np.all(np.sign(np.round(slope, 5)) == sign)


def test_mistakes_are_named():
  with pytest.raises(UserError, match="vid: eps is 0; expected a number above 0"):
    kd.vid("tap", "tap", eps=0)
  with pytest.raises(UserError, match="vid: variance - eps is .*; expected a number above 0"):
    kd.vid("tap", "tap", variance=1e-6)
