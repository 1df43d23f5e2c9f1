"""Flow of the solution procedure against the paper's equations in float64, by hand, and at its limits."""

import jax
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import check, maps, outputs, value
from tests.kd.oracles import pool64

THREE = ("a", "b", "c")


def flow64(low, high):
  out = np.zeros((len(low), low.shape[-1], high.shape[-1]))
  for i in range(low.shape[1]):
    for j in range(low.shape[2]):
      out += low[:, i, j, :, None] * high[:, i, j, None, :]
  return out / (low.shape[1] * low.shape[2])


def test_value_and_gradient_are_the_papers_for_one_tap_given_twice():
  def oracle(s, t):
    return ((flow64(s, s) - flow64(t, t)) ** 2).mean((1, 2))

  check(kd.fsp(("tap", "tap"), ("tap", "tap")), oracle, maps(0, (4, 4, 3)), maps(1, (2, 2, 3)))


@pytest.mark.parametrize("paper", [False, True])
def test_consecutive_taps_are_paired_and_the_larger_pooled(paper):
  s = {"a": maps(0, (8, 8, 2)), "b": maps(1, (4, 4, 3)), "c": maps(2, (4, 4, 5))}
  t = {"a": maps(3, (4, 4, 2)), "b": maps(4, (2, 2, 3)), "c": maps(5, (4, 4, 5))}

  def pooled(x, size):
    windows = x.reshape(len(x), size, x.shape[1] // size, size, x.shape[2] // size, x.shape[3])
    return windows.max((2, 4)) if paper else pool64(x, size, size)

  def total(gap):
    return (gap**2).sum((1, 2)) if paper else (gap**2).mean((1, 2))

  first = total(flow64(pooled(s["a"], 4), s["b"]) - flow64(pooled(t["a"], 2), t["b"]))
  second = total(flow64(s["b"], s["c"]) - flow64(t["b"], pooled(t["c"], 2)))
  with jax.enable_x64(True):
    got = value(kd.fsp(THREE, THREE, paper), outputs(s, dtype=np.float64), outputs(t, dtype=np.float64))
  np.testing.assert_allclose(got, first + second, rtol=1e-12)


def test_by_hand():
  # One place: G is the outer product, (1, 2) x (1, 2) against (1, 1) x (1, 1): gaps 0, 1, 1, 3; mean 11 / 4, sum 11.
  s, t = np.array([[[[1.0, 2.0]]]]), np.array([[[[1.0, 1.0]]]])
  np.testing.assert_allclose(value(kd.fsp(("tap", "tap"), ("tap", "tap")), s, t), [11 / 4], rtol=1e-6)
  np.testing.assert_allclose(value(kd.fsp(("tap", "tap"), ("tap", "tap"), paper=True), s, t), [11.0], rtol=1e-6)


def test_the_order_of_places_does_not_matter():
  s, t = maps(0, (4, 4, 3)), maps(1, (4, 4, 3))
  loss = kd.fsp(("tap", "tap"), ("tap", "tap"))
  np.testing.assert_allclose(value(loss, s[:, ::-1], t), value(loss, s, t), rtol=1e-5)
  np.testing.assert_allclose(value(loss, s[:, ::-1], s), 0.0, atol=1e-12)


def test_mistakes_are_named():
  with pytest.raises(UserError, match="fsp: 1 tap of each network; expected 2 or more"):
    kd.fsp("tap", "tap")
  two = kd.fsp(("tap", "tap"), ("tap", "tap"), paper=True)
  with pytest.raises(
    UserError, match=r"fsp: channels \(3, 3\) of the student, \(4, 4\) of the teacher; expected equal"
  ):
    value(two, maps(0, (4, 4, 3)), maps(1, (4, 4, 4)))
  with pytest.raises(
    UserError,
    match=r"the loss 'fsp' reads 'tap' of the student, of shape \(6, 3\); expected \(batch, height, width, channels\)",
  ):
    value(two, maps(0, (3,)), maps(1, (3,)))
  odd = {"a": maps(0, (3, 3, 2)), "b": maps(0, (2, 2, 2))}
  with pytest.raises(UserError, match=r"fsp: a map of \(3, 3\) cannot be max-pooled to \(2, 2\); expected a multiple"):
    value(kd.fsp(("a", "b"), ("a", "b"), paper=True), outputs(odd), outputs(odd))
