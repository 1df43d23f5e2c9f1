"""Total variation against its formula, by hand, and at its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import logits
from tests.kd.on_logits import check, check_minus_infinity, softmax, value


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_value_and_gradient_are_the_formulas(temperature):
  check(
    kd.total_variation(temperature),
    lambda s, t, labels: temperature / 2 * np.abs(softmax(t, temperature) - softmax(s, temperature)).sum(-1),
  )


def test_by_hand():
  # p = (3/4, 1/4), q = (1/2, 1/2).
  teacher = jnp.asarray([[np.log(3.0), 0.0]], jnp.float32)
  np.testing.assert_allclose(kd.total_variation()(jnp.zeros((1, 2)), teacher)[0], [0.25], rtol=1e-6)


def test_it_is_at_most_one_and_that_far_apart():
  far = 1e4 * np.eye(5)[None, 0].repeat(6, 0)
  np.testing.assert_array_equal(value(kd.total_variation(), far, -far), 1.0)


def test_pinsker():
  """2 TV^2 <= KL, both ways."""
  s, t = logits(2), logits(3)
  square = 2 * np.asarray(value(kd.total_variation(), s, t)) ** 2
  assert (square <= value(kd.hinton(1.0), s, t)).all() and (square <= value(kd.reverse_kl(), s, t)).all()


def test_its_gradient_keeps_its_size_as_the_temperature_grows():
  s, t = (jnp.asarray(logits(seed), jnp.float32) for seed in (2, 3))
  size = [jnp.linalg.norm(jax.grad(lambda s, c=c: kd.total_variation(c)(s, t)[0].sum())(s)) for c in (100.0, 1000.0)]
  np.testing.assert_allclose(size[0], size[1], rtol=0.05)


def test_a_class_excluded_by_minus_infinity():
  check_minus_infinity(kd.total_variation())


def test_a_mistake_is_one_sentence():
  with pytest.raises(UserError, match="total_variation: temperature is 0; expected a number from 0.001 to 10000"):
    kd.total_variation(0)
