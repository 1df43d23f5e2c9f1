"""Neuron selectivity transfer against the paper's discrepancy with loops, by hand, and at its limits."""

import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import check, maps, value
from tests.kd.oracles import pool64


def oracle(s, t):
  def samples(x):
    x = x.reshape(-1, x.shape[-1]).T
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

  def mean(f, g):
    return np.mean([(a @ b) ** 2 for a in f for b in g])

  pairs = [(samples(a), samples(b)) for a, b in zip(s, t, strict=True)]
  return np.array([mean(f, f) + mean(g, g) - 2 * mean(f, g) for f, g in pairs])


def test_value_and_gradient_are_the_papers():
  check(kd.nst("tap", "tap"), oracle, maps(0, (3, 3, 3)), maps(1, (3, 3, 5)))


def test_the_larger_map_is_averaged_down():
  check(kd.nst("tap", "tap"), lambda s, t: oracle(pool64(s, 2, 2), t), maps(0, (4, 4, 3)), maps(1, (2, 2, 5)))


def test_by_hand():
  # One channel each, at different places: 1 + 1 - 0. The same two channels in any order and scale: 0.
  s, t = np.array([[[[1.0], [0.0]]]]), np.array([[[[0.0], [3.0]]]])
  np.testing.assert_allclose(value(kd.nst("tap", "tap"), s, t), [2.0], rtol=1e-6)
  both = np.array([[[[1.0, 0.0], [0.0, 2.0]]]])
  np.testing.assert_allclose(value(kd.nst("tap", "tap"), both, -3 * both[..., ::-1]), [0.0], atol=1e-6)


def test_it_is_the_distance_of_second_moments():
  """Of degree 2, the discrepancy is that of the mean outer products of the channels' maps."""
  s, t = maps(2, (6, 3)), maps(3, (6, 4))

  def moment(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.einsum("bpc,bqc->bpq", x, x) / x.shape[-1]

  np.testing.assert_allclose(
    value(kd.nst("tap", "tap"), s, t), ((moment(s) - moment(t)) ** 2).sum((1, 2)), rtol=1e-5, atol=1e-6
  )


def test_mistakes_are_named():
  with pytest.raises(
    UserError,
    match=r"the loss 'nst' reads 'tap' of the student, of shape \(6, 3\); expected \(batch, height, width, channels\)",
  ):
    value(kd.nst("tap", "tap"), maps(0, (3,)), maps(1, (3,)))
  with pytest.raises(
    UserError, match=r"nst: a tap of shape \(6, 4, 3\) of the student cannot be compared with one of \(6, 6, 3\)"
  ):
    value(kd.nst("tap", "tap"), maps(0, (4, 3)), maps(1, (6, 3)))
