"""Channel-wise distillation against the paper's equation (scipy), by hand, and at its limits."""

import jax
import numpy as np
import pytest
import scipy.special

import kd
from leanax.core.errors import UserError
from tests.kd.nets import check, maps, value
from tests.kd.oracles import begin, pool64


def oracle(s, t, temperature=4.0):
  """Of maps of one shape."""
  q, p = (scipy.special.softmax(x.reshape(len(x), -1, x.shape[-1]) / temperature, 1) for x in (s, t))
  return temperature**2 * scipy.special.rel_entr(p, q).sum(1).mean(-1)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_value_and_gradient_are_the_papers(temperature):
  loss, s, t = kd.cwd("tap", "tap", temperature), maps(0, (3, 3, 4)), maps(1, (3, 3, 4))
  given = begin(loss, s, t)
  assert not jax.tree.leaves(given["aux"])  # as many channels: nothing is trained
  check(loss, lambda s, t: oracle(s, t, temperature), s, t, **given)


def test_other_channels_and_sizes():
  loss, s, t = kd.cwd("tap", "tap"), maps(0, (4, 4, 3)), maps(1, (2, 2, 5))
  given = begin(loss, s, t)
  check(loss, lambda s, t: oracle(pool64(s, 2, 2) @ given["aux"][0]["kernel"], t), s, t, **given)


def test_by_hand():
  # Two places: the teacher is sure of one, the student of none.
  s, t = np.zeros((1, 1, 2, 1)), np.array([[[[1e4], [-1e4]]]])
  np.testing.assert_allclose(value(kd.cwd("tap", "tap", 1.0), s, t, aux=[{}]), [np.log(2)], rtol=1e-6)
  np.testing.assert_allclose(value(kd.cwd("tap", "tap", 2.0), s, t, aux=[{}]), [4 * np.log(2)], rtol=1e-6)


def test_a_channels_offset_does_not_matter():
  s, t = maps(2, (3, 3, 4)), maps(3, (3, 3, 4))
  loss, offset = kd.cwd("tap", "tap"), np.arange(4.0)
  np.testing.assert_allclose(value(loss, s + offset, t, aux=[{}]), value(loss, s, t, aux=[{}]), rtol=1e-4)
  np.testing.assert_allclose(value(loss, s, s - offset, aux=[{}]), 0.0, atol=1e-5)


def test_mistakes_are_named():
  with pytest.raises(UserError, match="cwd: temperature is 0; expected a number from 0.001 to 10000"):
    kd.cwd("tap", "tap", temperature=0)
  with pytest.raises(
    UserError,
    match=r"the loss 'cwd' reads 'tap' of the student, of shape \(6, 3\); expected \(batch, height, width, channels\)",
  ):
    value(kd.cwd("tap", "tap"), maps(0, (3,)), maps(1, (3,)), aux=[{}])
