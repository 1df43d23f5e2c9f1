"""Bernoulli divergences against the formula in numpy, by hand, and as Hinton's loss of two classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import kd
from leanax.core.errors import UserError
from tests.kd.nets import logits
from tests.kd.on_logits import check, check_minus_infinity, value


def oracle(temperature):
  def numbers(s, t, labels):
    q, p = (scipy.special.expit(x / temperature) for x in (s, t))
    return temperature**2 * (scipy.special.rel_entr(p, q) + scipy.special.rel_entr(1 - p, 1 - q)).sum(-1)

  return numbers


@pytest.mark.parametrize("temperature", [4.0, 1.0])
def test_value_and_gradient_are_the_formulas(temperature):
  check(kd.bernoulli_kl(temperature), oracle(temperature))


def test_by_hand():
  # p = 3/4, q = 1/2, T = 2: 3/4 log(3/2) + 1/4 log(1/2), times 4.
  got = kd.bernoulli_kl(2.0)(jnp.zeros((1, 1)), jnp.asarray([[2 * np.log(3.0)]], jnp.float32))[0]
  np.testing.assert_allclose(got, [4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))], rtol=1e-6)


def test_one_logit_is_hinton_of_two_classes():
  s, t = logits(2), logits(3)
  with jax.enable_x64(True):
    two = [np.stack([x, 0 * x], -1) for x in (s, t)]
    want = kd.hinton(3.0)(*map(jnp.asarray, two))[0]
    np.testing.assert_allclose(kd.bernoulli_kl(3.0)(*(jnp.asarray(x)[..., None] for x in (s, t)))[0], want, rtol=1e-12)


def test_the_gradient_of_one_logit_is_not_zero():
  gradient = jax.grad(lambda s: kd.bernoulli_kl(1.0)(s, jnp.ones((4, 1)))[0].sum())(jnp.zeros((4, 1)))
  np.testing.assert_allclose(gradient, 0.5 - scipy.special.expit(1.0), rtol=1e-6)


def test_an_output_that_is_excluded():
  check_minus_infinity(kd.bernoulli_kl())
  alone = kd.bernoulli_kl(1.0)(jnp.zeros((1, 1)), jnp.full((1, 1), -jnp.inf))[0]
  np.testing.assert_allclose(alone, [np.log(2)], rtol=1e-6)
  assert value(kd.bernoulli_kl(1.0), np.full((1, 1), -np.inf), np.zeros((1, 1))) == np.inf


def test_mistakes_are_one_sentence():
  with pytest.raises(UserError, match="bernoulli_kl: temperature is 0; expected a number from 0.001 to 10000"):
    kd.bernoulli_kl(0)
