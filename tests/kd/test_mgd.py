"""Masked generative distillation against the paper's equations in float64, by hand, and its masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from kd.losses.mgd import random_mask
from leanax.core.errors import UserError
from tests.kd.nets import BATCH, batch, check, maps, value
from tests.kd.oracles import begin, layer64

KEY = jax.random.key(3)


def context(count=BATCH, key=KEY):
  return kd.Context({"id": jnp.arange(count, dtype=jnp.int32)}, key=key)


@pytest.mark.parametrize(("masked", "shape"), [("places", (4, 4, 1)), ("channels", (1, 1, 5))])
def test_value_and_gradient_are_the_papers(masked, shape):
  loss, s, t = kd.mgd("tap", "tap", masked=masked), maps(0, (4, 4, 3)), maps(1, (4, 4, 5))
  given = begin(loss, s, t)
  mask = np.asarray(random_mask(context(), shape, 0.5))

  def oracle(s, t):
    aux = given["aux"][0]
    hidden = np.maximum(layer64(aux["first"], layer64(aux["reduce"], s) * mask), 0)
    return ((layer64(aux["second"], hidden) - t) ** 2).sum((1, 2, 3))

  check(loss, oracle, s, t, key=KEY, **given)


def test_by_hand():
  # Only the middle of each window: 2 * relu(3 * s) where s is seen and 0 where not, against 1.
  kernel = np.zeros((3, 3, 1, 1))
  kernel[1, 1] = 1
  aux = [{"first": {"kernel": 3 * kernel, "bias": np.zeros(1)}, "second": {"kernel": 2 * kernel, "bias": np.zeros(1)}}]
  shown = np.asarray(random_mask(context(), (2, 2, 1), 0.5)).reshape(BATCH, -1).sum(-1)
  s = np.ones((BATCH, 2, 2, 1))
  np.testing.assert_allclose(value(kd.mgd("tap", "tap"), s, s, aux=aux, key=KEY), 25 * shown + (4 - shown), rtol=1e-6)


def test_masks_belong_to_examples_and_steps():
  many = random_mask(context(2000), (4, 1, 1), 0.3)
  np.testing.assert_allclose(many.mean(), 0.7, atol=0.03)
  backwards = kd.Context({"id": jnp.arange(1999, -1, -1, dtype=jnp.int32)}, key=KEY)
  np.testing.assert_array_equal(random_mask(backwards, (4, 1, 1), 0.3)[::-1], many)
  assert np.any(random_mask(context(2000, jax.random.key(4)), (4, 1, 1), 0.3) != many)


def test_channels_are_mapped_only_where_they_differ():
  loss = kd.mgd("tap", "tap")
  assert "reduce" not in begin(loss, maps(0, (4, 4, 5)), maps(1, (4, 4, 5)))["aux"][0]
  assert "reduce" in begin(loss, maps(0, (4, 4, 3)), maps(1, (4, 4, 5)))["aux"][0]


def test_mistakes_are_named():
  with pytest.raises(UserError, match="mgd: hidden is 1; expected a number above 0 and below 1"):
    kd.mgd("tap", "tap", hidden=1)
  with pytest.raises(UserError, match="mgd: masked is 'rows'; expected 'places' or 'channels'"):
    kd.mgd("tap", "tap", masked="rows")
  loss, s = kd.mgd("tap", "tap"), maps(0, (4, 4, 3))
  with pytest.raises(
    UserError,
    match=r"the loss 'mgd' reads 'tap' of the student, of shape \(6, 3\); expected \(batch, height, width, channels\)",
  ):
    begin(loss, maps(0, (3,)), maps(0, (3,)))
  given = begin(loss, s, s)
  for wrong in ({}, {"key": KEY, "batch": {name: x for name, x in batch().items() if name != "id"}}):
    with pytest.raises(UserError, match="the loss 'mgd' masks at random: give it a 'key', and a batch with 'id'"):
      value(loss, s, s, **given, **wrong)
