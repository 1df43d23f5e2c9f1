"""Weighted soft labels against the paper's equation, by hand, and at the ends of the weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import batch, labels, logits
from tests.kd.on_logits import check, check_minus_infinity, check_mixed, check_slope, softmax, value


def weight(s, t, labels):
  rows = np.arange(len(s))
  return 1 - np.exp(np.log(softmax(s)[rows, labels]) / (1e-7 - np.log(softmax(t)[rows, labels])))


def soft(s, t, temperature):
  return -(temperature**2) * (softmax(t, temperature) * np.log(softmax(s, temperature))).sum(-1)


@pytest.mark.parametrize("temperature", [2.0, 1.0])
def test_value_is_the_papers(temperature):
  oracle = lambda s, t, labels: weight(s, t, labels) * soft(s, t, temperature)
  check(kd.wsld(temperature), oracle, slope=False)


def test_the_weight_is_a_constant_of_the_gradient():
  s, t = logits(0), logits(1)
  with jax.enable_x64(True):
    gradient = jax.grad(lambda s: value(kd.wsld(), s, t).sum())(jnp.asarray(s))
    plain = jax.grad(lambda s: value(kd.hinton(2.0), s, t).sum())(jnp.asarray(s))
  check_slope(np.asarray(gradient), lambda x: weight(s, t, labels()) * soft(x, t, 2.0), s)
  np.testing.assert_allclose(gradient, weight(s, t, labels())[:, None] * np.asarray(plain), rtol=1e-10)


def test_by_hand():
  # p = (3/4, 1/4), q = (1/2, 1/2), label 1: weight 1 - exp(-log 2 / log 4) = 1 - exp(-1/2), entropy log 2.
  t = jnp.log(jnp.asarray([[3.0, 1.0]]))
  got = kd.wsld(1.0)(jnp.zeros((1, 2)), t, {"label": jnp.ones((1,), jnp.int32)})[0]
  np.testing.assert_allclose(got, [(1 - np.exp(-0.5)) * np.log(2)], rtol=1e-6)


def test_the_weight_is_one_where_the_teacher_is_sure_and_zero_where_the_student_is():
  s, t, sure = logits(2), logits(3), 1e4 * np.eye(5)[labels()]
  np.testing.assert_allclose(value(kd.wsld(), s, sure), value(kd.soft_labels(2.0), s, sure), rtol=1e-6)
  np.testing.assert_array_equal(value(kd.wsld(), sure, t), 0.0)
  np.testing.assert_array_equal(value(kd.wsld(), sure, sure), 0.0)


def test_the_weight_reads_the_label():
  s, t = logits(2), logits(3)
  other = batch(label=jnp.zeros((6,), jnp.int32))
  assert not np.allclose(value(kd.wsld(), s, t), value(kd.wsld(), s, t, batch=other))


def test_a_class_excluded_by_minus_infinity():
  check_minus_infinity(kd.wsld())


def test_two_labels_of_a_mixed_example():
  check_mixed(kd.wsld())


def test_mistakes_are_one_sentence():
  with pytest.raises(UserError, match="wsld: temperature is 0"):
    kd.wsld(0)
  with pytest.raises(UserError, match="'wsld' needs labels"):
    kd.wsld()(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
