"""Schedules by hand, and in a loss."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

import kd
from kd import schedules
from leanax.core.errors import UserError
from tests.kd.nets import batch, logits, maps, outputs


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


@pytest.mark.parametrize(
  "loss",
  [
    lambda heat: kd.soft_labels(heat),
    lambda heat: kd.dist(tau=heat),
    lambda heat: kd.mlkd((heat, 2.0)),
    lambda heat: kd.cwd("tap", "tap", heat),
  ],
)
def test_these_follow_theirs_too(loss):
  s, t = (outputs({"tap": maps(seed, (2, 3, 4))}, seed) for seed in (0, 1))
  for step, heat in ((0, 1.0), (5, 3.0)):
    expected = loss(heat)(s, t, batch(), aux=[{}])[0]
    got = loss(schedules.linear(1.0, 5.0, 0, 10))(s, t, batch(), aux=[{}], step=jnp.int32(step))[0]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("bad", ["a", None, True, float("nan"), float("inf"), (1.0,)])
@pytest.mark.parametrize(
  ("name", "key", "given"),
  [
    *(("linear", key, (0.0, 1.0, 0, 10)) for key in ("low", "high", "start", "end")),
    *(("cosine", key, (0.0, 1.0, 0, 10)) for key in ("low", "high", "start", "end")),
    *(("switch", key, (0.0, 1.0, 5)) for key in ("low", "high", "at")),
  ],
)
def test_its_numbers_are_numbers(name, key, given, bad):
  made = getattr(schedules, name)
  given = dict(zip(inspect.signature(made).parameters, given, strict=True))
  made(**given)
  with pytest.raises(UserError) as caught:
    made(**{**given, key: bad})
  assert str(caught.value) == f"schedule {name!r}: {key} is {bad!r}; expected a finite number"


def test_a_schedule_that_ends_before_it_starts():
  with pytest.raises(UserError, match="schedule 'linear' starts at update 20 and ends at 10; expected it to end later"):
    schedules.linear(0.0, 1.0, 20, 10)
