"""Reverse divergence against its formula, by hand, and as the forward one with the networks exchanged."""

import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import logits
from tests.kd.on_logits import check, check_minus_infinity, kl, softmax, value


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_value_and_gradient_are_the_formulas(temperature):
  check(
    kd.reverse_kl(temperature),
    lambda s, t, labels: temperature**2 * kl(softmax(s, temperature), softmax(t, temperature)),
  )


def test_by_hand():
  # q = (1/2, 1/2), p = (3/4, 1/4): 1/2 log(2/3) + 1/2 log 2.
  teacher = jnp.asarray([[np.log(3.0), 0.0]], jnp.float32)
  got = kd.reverse_kl()(jnp.zeros((1, 2)), teacher)[0]
  np.testing.assert_allclose(got, [0.5 * np.log(4 / 3)], rtol=1e-6)


def test_it_is_hinton_of_exchanged_networks():
  s, t = logits(2), logits(3)
  np.testing.assert_allclose(value(kd.reverse_kl(3.0), s, t), value(kd.hinton(3.0), t, s), rtol=1e-5)
  assert not np.allclose(value(kd.reverse_kl(3.0), s, t), value(kd.hinton(3.0), s, t), rtol=1e-2)


def test_a_class_excluded_by_minus_infinity():
  check_minus_infinity(kd.reverse_kl())


def test_a_mistake_is_one_sentence():
  with pytest.raises(UserError, match="reverse_kl: temperature is 0; expected a number from 0.001 to 10000"):
    kd.reverse_kl(0)
