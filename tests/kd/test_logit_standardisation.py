"""Standardised logits against the paper's algorithm, by hand, and what they must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import logits
from tests.kd.on_logits import check, kl, softmax, value


def oracle(temperature, eps=1e-7):
  def standard(x):
    return (x - x.mean(-1, keepdims=True)) / (x.std(-1, ddof=1, keepdims=True) + eps)

  return lambda s, t, labels: temperature**2 * kl(softmax(standard(t), temperature), softmax(standard(s), temperature))


@pytest.mark.parametrize(("temperature", "eps"), [(2.0, 1e-7), (4.0, 0.5)])
def test_value_and_gradient_are_the_papers(temperature, eps):
  check(kd.logit_standardisation(temperature, eps), oracle(temperature, eps))


def test_by_hand():
  # Of two logits a and b, z = (1, -1) / sqrt(2) whatever they are; the student's are the other way round.
  got = kd.logit_standardisation(1.0)(jnp.asarray([[0.0, 3.0]]), jnp.asarray([[5.0, 1.0]]))[0]
  p = 1 / (1 + np.exp(-np.sqrt(2)))
  np.testing.assert_allclose(got, [(2 * p - 1) * np.sqrt(2)], rtol=1e-6)


def test_size_and_shift_do_not_matter():
  s, t = logits(2), logits(3)
  loss = kd.logit_standardisation()
  np.testing.assert_allclose(value(loss, 7 * s + 3, t), value(loss, s, t), rtol=1e-4)
  np.testing.assert_allclose(value(loss, 7 * t - 3, t), 0.0, atol=1e-6)


def test_equal_logits_have_no_gradient_that_is_not_a_number():
  t, flat = jnp.asarray(logits(3), jnp.float32), jnp.full((6, 5), 2.0)
  loss = kd.logit_standardisation()
  assert bool(jnp.isfinite(jax.grad(lambda s: loss(s, t)[0].sum())(flat)).all())
  np.testing.assert_allclose(value(loss, flat, flat), 0.0, atol=1e-7)


def test_mistakes_are_one_sentence():
  with pytest.raises(UserError, match="logit_standardisation: temperature is 0"):
    kd.logit_standardisation(0)
  with pytest.raises(UserError, match="logit_standardisation: eps is 0; expected a number above 0"):
    kd.logit_standardisation(eps=0)
