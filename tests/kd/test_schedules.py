"""Schedules by hand, and in a loss."""

import inspect
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

import kd
from kd import schedules
from leanax.core.errors import UserError
from leanax.core.methods import methods
from tests.kd.nets import batch, logits, maps, outputs

METHODS = methods(schedules)


def test_by_hand():
  steps = jnp.array([0, 10, 15, 20, 30])
  np.testing.assert_allclose(schedules.linear(1.0, 5.0, 10, 20)(steps), [1, 1, 3, 5, 5])
  np.testing.assert_allclose(schedules.cosine(1.0, 5.0, 10, 20)(steps), [1, 1, 3, 5, 5], rtol=1e-6)
  np.testing.assert_allclose(schedules.cosine(0.0, 1.0, 0, 4)(jnp.array(1)), 0.5 - 0.5 * np.cos(np.pi / 4), rtol=1e-6)
  np.testing.assert_allclose(schedules.switch(0.0, 2.0, 15)(steps), [0, 0, 2, 2, 2])


@pytest.mark.parametrize("name", METHODS)
def test_every_schedule_goes_from_one_end_to_the_other(name):
  """It is constant outside of its steps, monotone between, and its ends are those that a range is compared with."""
  arguments = (3.0, 1.0, 15) if name == "switch" else (3.0, 1.0, 10, 20)
  found = np.array([getattr(schedules, name)(*arguments)(jnp.array(step)) for step in range(0, 31)])
  np.testing.assert_array_equal(found[:11], 3.0)
  np.testing.assert_array_equal(found[20:], 1.0)
  assert (np.diff(found) <= 0).all() and sorted(getattr(schedules, name)(*arguments).ends) == [1.0, 3.0]


def test_every_file_of_schedules_is_collected():
  files = {path.stem for path in pathlib.Path(schedules.__file__).parent.glob("*.py")}
  assert files - {"__init__", "base"} == set(METHODS), "a file of kd/schedules has no schedule of its name"


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
def test_temperatures_of_other_losses_follow_schedules(loss):
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
def test_arguments_are_finite_numbers(name, key, given, bad):
  made = getattr(schedules, name)
  given = dict(zip(inspect.signature(made).parameters, given, strict=True))
  made(**given)
  with pytest.raises(UserError) as caught:
    made(**{**given, key: bad})
  assert str(caught.value) == f"schedule {name!r}: {key} is {bad!r}; expected a finite number"


def test_a_schedule_that_ends_before_it_starts():
  with pytest.raises(UserError, match="schedule 'linear' starts at update 20 and ends at 10; expected it to end later"):
    schedules.linear(0.0, 1.0, 20, 10)
