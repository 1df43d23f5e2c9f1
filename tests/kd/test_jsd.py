"""Generalised Jensen-Shannon divergence against the paper's equation, by hand, and at the ends of beta."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance

import kd
from leanax.core.errors import UserError
from tests.kd.nets import logits
from tests.kd.on_logits import check, check_minus_infinity, kl, softmax, value


def oracle(beta, temperature=1.0):
  def numbers(s, t, labels):
    p, q = softmax(t, temperature), softmax(s, temperature)
    m = beta * p + (1 - beta) * q
    return temperature**2 * (beta * kl(p, m) + (1 - beta) * kl(q, m))

  return numbers


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("beta", "temperature"), [(0.5, 1.0), (0.1, 1.0), (0.9, 2.0)])
def test_value_and_gradient_are_the_papers(beta, temperature):
  check(kd.jsd(beta, temperature), oracle(beta, temperature))


def test_by_hand():
  # p = (1, 0) and q = (1/2, 1/2), beta 1/4: m = (5/8, 3/8).
  teacher = jnp.asarray([[200.0, 0.0]], jnp.float32)
  expected = 0.25 * np.log(8 / 5) + 0.75 * (0.5 * np.log(4 / 5) + 0.5 * np.log(4 / 3))
  np.testing.assert_allclose(kd.jsd(0.25)(jnp.zeros((1, 2)), teacher)[0], [expected], rtol=1e-6)


def test_one_half_is_the_symmetric_divergence():
  s, t = logits(2), logits(3)
  distance = scipy.spatial.distance.jensenshannon(softmax(s), softmax(t), axis=-1)
  np.testing.assert_allclose(value(kd.jsd(), s, t), distance**2, rtol=1e-5)
  np.testing.assert_allclose(value(kd.jsd(), s, t), value(kd.jsd(), t, s), rtol=1e-5)
  far = 1e4 * np.eye(5)[None, 0].repeat(6, 0)
  np.testing.assert_allclose(value(kd.jsd(), far, -far), np.log(2), rtol=1e-6)


def test_the_ends_of_beta_are_forward_and_reverse():
  """Loss / beta tends to KL(teacher || student) at 0, loss / (1 - beta) to KL(student || teacher) at 1."""
  s, t, small = logits(2), logits(3), 1e-6
  with jax.enable_x64(True):
    forward, reverse = value(kd.hinton(1.0), s, t), value(kd.reverse_kl(), s, t)
    np.testing.assert_allclose(value(kd.jsd(small), s, t) / small, forward, rtol=1e-4)
    np.testing.assert_allclose(value(kd.jsd(1 - small), s, t) / small, reverse, rtol=1e-4)
  assert not np.allclose(forward, reverse, rtol=1e-2)


def test_exchanged_networks_exchange_beta():
  s, t = logits(4), logits(5)
  np.testing.assert_allclose(value(kd.jsd(0.2), s, t), value(kd.jsd(0.8), t, s), rtol=1e-5)


def test_a_class_excluded_by_minus_infinity():
  check_minus_infinity(kd.jsd(0.3))


@pytest.mark.parametrize("beta", [0, 1, -0.5, float("nan")])
def test_mistakes_are_one_sentence(beta):
  with pytest.raises(UserError, match=f"jsd: beta is {beta}; expected a number above 0 and below 1"):
    kd.jsd(beta)
  with pytest.raises(UserError, match="jsd: temperature is -1"):
    kd.jsd(temperature=-1)
