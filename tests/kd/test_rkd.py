"""Relational distillation against the paper's equations with loops, by hand, at its limits, and far from the origin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import batch, check, maps, outputs, value


def huber64(x):
  return np.where(np.abs(x) <= 1, x**2 / 2, np.abs(x) - 0.5)


def unit64(x):
  return x / np.linalg.norm(x) if np.any(x) else x


def oracle(s, t, distance=25.0, angle=50.0):
  n = len(s)
  s, t = s.reshape(n, -1), t.reshape(n, -1)

  def distances(x):
    d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
    return d / d.sum() * (n * (n - 1))

  gaps = huber64(distances(s) - distances(t))
  out = distance * gaps.sum(-1) / n
  for i in range(n):
    for j in range(n):
      for k in range(n):
        cosines = [unit64(x[j] - x[i]) @ unit64(x[k] - x[i]) for x in (s, t)]
        out[i] += angle * huber64(cosines[0] - cosines[1]) / n**2
  return out


@pytest.mark.sampled(2)
@pytest.mark.parametrize("settings", [{}, {"distance": 1.0, "angle": 0.0}, {"distance": 0.0, "angle": 2.0}])
def test_value_and_gradient_are_the_papers(settings):
  check(kd.rkd("tap", "tap", **settings), lambda s, t: oracle(s, t, **settings), maps(0, (2, 2, 3)), maps(1, (7,)))


def test_by_hand():
  # Points 0, 1, 3 on a line: distances 1, 2, 3, of mean 2. The teacher's triangle is equilateral: distances 1.
  s = np.array([[0.0], [1.0], [3.0]])
  t = np.array([[0.0, 0], [1, 0], [0.5, np.sqrt(0.75)]])
  want = np.array([(0.5**2 + 0.5**2) / 2, 0.5**2 / 2, 0.5**2 / 2]) / 3  # 1/2, 3/2 | 1/2, 1 | 3/2, 1
  np.testing.assert_allclose(value(kd.rkd("tap", "tap", 1.0, 0.0), s, t), want, rtol=1e-5)
  # Its angles: cosine 1/2 everywhere in the teacher; 1, -1, 1 in the student, twice each.
  want = np.array([2 * 0.125, 2 * (1.5 - 0.5), 2 * 0.125]) / 9
  np.testing.assert_allclose(value(kd.rkd("tap", "tap", 0.0, 1.0), s, t), want, rtol=1e-5)


def test_far_from_the_origin_float32_keeps_its_digits():
  """Mean 100 and deviation 0.01: squared norms less dot products would have no digit left."""
  s, t = np.float32(100 + maps(0, (16,), 0.01)), np.float32(100 + maps(1, (16,), 0.01))
  loss = kd.rkd("tap", "tap")
  np.testing.assert_allclose(value(loss, s, t), oracle(np.float64(s), np.float64(t)), rtol=1e-5)
  teacher = outputs({"tap": t})
  gradient = jax.jit(jax.grad(lambda s: value(loss, kd.Outputs(s, {"tap": s}), teacher).sum()))(jnp.asarray(s))
  with jax.enable_x64(True):
    s64 = jnp.asarray(s, jnp.float64)
    want = jax.jit(jax.grad(lambda s: value(loss, kd.Outputs(s, {"tap": s}), np.float64(t)).sum()))(s64)
  np.testing.assert_allclose(gradient, want, rtol=1e-3, atol=1e-5 * np.abs(want).max())


def test_shifts_scales_and_rotations_do_not_matter():
  s, t, loss = maps(2, (5,)), maps(3, (5,)), kd.rkd("tap", "tap")
  rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
  np.testing.assert_allclose(value(loss, s, 3 * s @ rotation + 1), 0.0, atol=1e-9)
  np.testing.assert_allclose(value(loss, 4 * s @ rotation - 2, t), value(loss, s, t), rtol=1e-4)


def test_masked_examples_are_ignored():
  s, t = maps(0, (7,)), maps(1, (5,))
  valid = np.array([1, 0, 1, 1, 0, 1], bool)
  got = value(kd.rkd("tap", "tap"), s, t, batch=batch(valid=jnp.asarray(valid)))
  np.testing.assert_allclose(np.asarray(got)[valid], oracle(s[valid], t[valid]), rtol=1e-5)


def test_examples_that_coincide_have_a_gradient():
  twins, t = np.float32(maps(0, (7,))), outputs({"tap": maps(1, (5,))})
  twins[1] = twins[0]
  for s in (jnp.asarray(twins), jnp.ones_like(twins)):
    gradient = jax.grad(lambda s: value(kd.rkd("tap", "tap"), kd.Outputs(s, {"tap": s}), t).sum())(s)
    assert jnp.all(jnp.isfinite(gradient))


def test_mistakes_are_named():
  with pytest.raises(UserError, match="rkd: distance is -1; expected a number, 0 or more"):
    kd.rkd("tap", "tap", distance=-1)
  with pytest.raises(UserError, match=r"rkd: distance \+ angle is 0; expected a number above 0"):
    kd.rkd("tap", "tap", 0, 0)
