"""Huber's distances against optax and numpy, by hand, and at the limit of a large delta."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import logits
from tests.kd.on_logits import check, check_minus_infinity


def oracle(delta):
  def numbers(s, t, labels):
    r = np.abs(s - t)
    return np.where(r <= delta, r**2 / 2, delta * (r - delta / 2)).sum(-1)

  return numbers


@pytest.mark.parametrize("delta", [1.0, 2.5])
def test_value_and_gradient_are_the_formulas(delta):
  check(kd.huber(delta), oracle(delta))
  check_minus_infinity(kd.huber(delta))


def test_it_is_that_of_optax():
  s, t = jnp.asarray(logits(0), jnp.float32), jnp.asarray(logits(1), jnp.float32)
  np.testing.assert_allclose(kd.huber(0.7)(s, t)[0], optax.huber_loss(s, t, delta=0.7).sum(-1), rtol=1e-6)


def test_by_hand_from_the_batch():
  loss, data = kd.huber(1.0, source="batch"), {"target": jnp.asarray([[0.5], [3.0], [-3.0], [0.0]])}
  assert not loss.needs_teacher
  s = jnp.zeros((4, 1))
  np.testing.assert_array_equal(loss(s, None, data)[0], [0.125, 2.5, 2.5, 0.0])
  np.testing.assert_array_equal(jax.grad(lambda s: loss(s, None, data)[0].sum())(s)[:, 0], [-0.5, -1.0, 1.0, 0.0])


def test_a_large_delta_is_half_the_squared_error():
  s, t = jnp.asarray(logits(0), jnp.float32), jnp.asarray(logits(1), jnp.float32)
  np.testing.assert_allclose(kd.huber(1e3)(s, t)[0], 0.5 * kd.squared_error()(s, t)[0], rtol=1e-6)


def test_mistakes_are_one_sentence():
  with pytest.raises(UserError, match="huber: delta is 0; expected a number above 0"):
    kd.huber(0)
  with pytest.raises(UserError, match="unknown source of huber 'bach'; did you mean 'batch'"):
    kd.huber(source="bach")
