"""Probabilistic knowledge transfer against the paper's equations, by hand, and at its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

import kd
from tests.kd.nets import batch, check, maps, outputs, value


def oracle(s, t):
  def neighbours(x):
    x = x.reshape(len(x), -1)
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    kernel = (x @ x.T + 1) / 2
    return kernel / kernel.sum(-1, keepdims=True)

  return scipy.special.rel_entr(neighbours(t), neighbours(s)).sum(-1) / len(s)


def test_value_and_gradient_are_the_papers():
  check(kd.pkt("tap", "tap"), oracle, maps(0, (2, 2, 3)), maps(1, (7,)))


def test_by_hand():
  # Orthogonal students: K = (1, 1/2), P = (2/3, 1/3). Equal teachers: P = (1/2, 1/2).
  s, t = np.eye(2), np.ones((2, 3))
  want = (0.5 * np.log(0.5 * 3 / 2) + 0.5 * np.log(0.5 * 3)) / 2
  np.testing.assert_allclose(value(kd.pkt("tap", "tap"), s, t), [want, want], rtol=1e-6)


def test_rotations_and_scales_do_not_matter():
  s = maps(2, (5,))
  rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
  np.testing.assert_allclose(value(kd.pkt("tap", "tap"), s, 3 * s @ rotation), 0.0, atol=1e-7)


def test_opposite_examples_are_finite():
  """A cosine of -1 is a neighbour of probability 0."""
  s = jnp.asarray([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
  t = jnp.asarray([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
  loss = kd.pkt("tap", "tap")
  for a, b in ((s, t), (t, s), (s, s)):
    gradient = jax.grad(lambda a, b=b: value(loss, kd.Outputs(a, {"tap": a}), outputs({"tap": b})).sum())(a)
    assert jnp.all(jnp.isfinite(gradient)) and jnp.all(jnp.isfinite(value(loss, a, b)))
  np.testing.assert_allclose(value(loss, s, s), 0.0, atol=1e-7)


def test_masked_examples_are_ignored():
  s, t = maps(0, (7,)), maps(1, (5,))
  valid = np.array([1, 0, 1, 1, 0, 1], bool)
  got = value(kd.pkt("tap", "tap"), s, t, batch=batch(valid=jnp.asarray(valid)))
  np.testing.assert_allclose(np.asarray(got)[valid], oracle(s[valid], t[valid]), rtol=1e-4)
