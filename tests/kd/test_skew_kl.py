"""Skew divergences against the paper's equations, by hand, and at the ends of alpha."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import logits
from tests.kd.on_logits import check, check_minus_infinity, kl, softmax, value


def oracle(alpha, reverse, temperature):
  def numbers(s, t, labels):
    p, q = softmax(t, temperature), softmax(s, temperature)
    if reverse:
      return temperature**2 * kl(q, (1 - alpha) * p + alpha * q)
    return temperature**2 * kl(p, alpha * p + (1 - alpha) * q)

  return numbers


@pytest.mark.sampled(3)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("alpha", "temperature"), [(0.1, 1.0), (0.7, 2.0)])
def test_value_and_gradient_are_the_papers(alpha, reverse, temperature):
  check(kd.skew_kl(alpha, reverse, temperature), oracle(alpha, reverse, temperature))


def test_by_hand():
  # p = (1, 0), q = (1/2, 1/2), alpha 1/4: the mixtures are (5/8, 3/8) and, reversed, (7/8, 1/8).
  s, t = jnp.zeros((1, 2)), jnp.asarray([[200.0, 0.0]], jnp.float32)
  np.testing.assert_allclose(kd.skew_kl(0.25)(s, t)[0], [np.log(8 / 5)], rtol=1e-6)
  reversed_ = 0.5 * np.log(4 / 7) + 0.5 * np.log(4)
  np.testing.assert_allclose(kd.skew_kl(0.25, reverse=True)(s, t)[0], [reversed_], rtol=1e-6)


def test_a_small_alpha_is_the_plain_divergence():
  s, t = logits(2), logits(3)
  with jax.enable_x64(True):
    np.testing.assert_allclose(value(kd.skew_kl(1e-9), s, t), value(kd.hinton(1.0), s, t), rtol=1e-6)
    np.testing.assert_allclose(value(kd.skew_kl(1e-9, reverse=True), s, t), value(kd.reverse_kl(), s, t), rtol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_it_is_bounded(reverse):
  far = 1e4 * np.eye(5)[None, 0].repeat(6, 0)
  np.testing.assert_allclose(value(kd.skew_kl(0.1, reverse), far, -far), np.log(10), rtol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_class_excluded_by_minus_infinity(reverse):
  check_minus_infinity(kd.skew_kl(0.1, reverse))


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.6])
def test_thousands_of_classes_that_do_not_count_add_nothing(alpha):
  """Not even the rounding of their mixtures, in float32."""
  s = jnp.zeros((1, 30000)).at[0, :2].set(3.0)
  class_mask = jnp.arange(30000) < 3
  np.testing.assert_allclose(kd.skew_kl(alpha)(s, s, class_mask=class_mask)[0], 0.0, atol=1e-6)


def test_mistakes_are_one_sentence():
  with pytest.raises(UserError, match="skew_kl: alpha is 1; expected a number above 0 and below 1"):
    kd.skew_kl(1)
  with pytest.raises(UserError, match="skew_kl: temperature is 0"):
    kd.skew_kl(temperature=0)
