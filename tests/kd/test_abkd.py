"""The alpha-beta divergence against its equation in float64, and the divergences that it tends to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import logits
from tests.kd.on_logits import check, check_minus_infinity, softmax, value


def ab64(alpha, beta, temperature):
  def oracle(s, t, labels):
    del labels
    p, q = softmax(t, temperature), softmax(s, temperature)
    power = alpha + beta
    terms = p**alpha * q**beta - alpha / power * p**power - beta / power * q**power
    return -(temperature**2) / (alpha * beta) * terms.sum(-1)

  return oracle


def test_a_case_by_hand():
  """Alpha and beta 1/2: 4 (1 - sum of the roots of p q). p = (1/2, 1/2) and q = (9/10, 1/10)."""
  s, t = jnp.log(jnp.asarray([[9.0, 1.0]])), jnp.zeros((1, 2))
  got = kd.abkd(0.5, 0.5, temperature=1.0)(s, t).per_example
  np.testing.assert_allclose(got, [4 * (1 - np.sqrt(0.45) - np.sqrt(0.05))], rtol=1e-6)


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(0.8, 0.2, 4.0), (0.3, 1.4, 1.0)])
def test_equation(alpha, beta, temperature):
  loss = kd.abkd(alpha, beta, temperature)
  check(loss, ab64(alpha, beta, temperature))
  check_minus_infinity(loss)


def test_its_limits_are_the_two_divergences():
  s, t = logits(0), logits(1)
  with jax.enable_x64(True):
    for loss, limit in ((kd.abkd(1.0, 1e-7, 2.0), kd.hinton(2.0)), (kd.abkd(1e-7, 1.0, 2.0), kd.reverse_kl(2.0))):
      np.testing.assert_allclose(value(loss, s, t), value(limit, s, t), rtol=1e-5)


@pytest.mark.parametrize("key", ["alpha", "beta", "temperature"])
@pytest.mark.parametrize("number", [0.0, -1.0, np.nan, "1"])
def test_arguments_are_above_0(key, number):
  with pytest.raises(UserError, match=f"abkd: {key} is .*; expected a number (above 0|from 0.001)"):
    kd.abkd(**{key: number})
