"""Schedules by hand, and in a loss."""

import jax.numpy as jnp
import numpy as np
import pytest

import kd
from core.errors import UserError
from kd import schedules
from tests.kd.nets import batch, logits


def test_by_hand():
  steps = jnp.array([0, 10, 15, 20, 30])
  np.testing.assert_allclose(schedules.linear(1.0, 5.0, 10, 20)(steps), [1, 1, 3, 5, 5])
  np.testing.assert_allclose(schedules.cosine(1.0, 5.0, 10, 20)(steps), [1, 1, 3, 5, 5], rtol=1e-6)
  np.testing.assert_allclose(schedules.cosine(0.0, 1.0, 0, 4)(jnp.array(1)), 0.5 - 0.5 * np.cos(np.pi / 4), rtol=1e-6)
  np.testing.assert_allclose(schedules.switch(0.0, 2.0, 15)(steps), [0, 0, 2, 2, 2])


def test_a_loss_follows_its_temperature():
  s, t = (jnp.asarray(logits(seed), jnp.float32) for seed in (0, 1))
  loss = kd.hinton(schedules.linear(1.0, 5.0, 0, 10))
  for step, temperature in ((0, 1.0), (5, 3.0), (99, 5.0)):
    expected = kd.hinton(temperature)(s, t, batch())[0]
    np.testing.assert_allclose(loss(s, t, batch(), step=step)[0], expected, rtol=1e-6)


def test_a_schedule_that_ends_before_it_starts():
  with pytest.raises(UserError, match="schedule 'linear' starts at update 20 and ends at 10; expected it to end later"):
    schedules.linear(0.0, 1.0, 20, 10)
