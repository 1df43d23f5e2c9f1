"""Both forms of correlation congruence against their equations with loops, by hand, and at their limits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import BATCH, batch, check, maps, value
from tests.kd.oracles import begin, layer64


def kernel64(s, t, gamma=0.4, order=2):
  def matrix(x):
    x = x.reshape(len(x), -1)
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    series = [(2 * gamma * (x @ x.T)) ** p / math.factorial(p) for p in range(order + 1)]
    return np.exp(-2 * gamma) * np.sum(series, 0)

  return ((matrix(s) - matrix(t)) ** 2).sum(-1) / len(s)


def consecutive64(s, t):
  d = np.abs(s - t).reshape(len(s), -1)
  pairs = [sum(d[i] * d[i + 1]) for i in range(len(d) - 1)]
  return np.array([*pairs, 0.0]) * len(d) / len(pairs)  # its mean is that over the pairs


@pytest.mark.parametrize("settings", [{}, {"gamma": 1.0, "order": 4}, {"order": 1}])
def test_the_kernel_form_is_the_papers(settings):
  check(
    kd.cc("tap", "tap", **settings), lambda s, t: kernel64(s, t, **settings), maps(0, (4, 4, 3)), maps(1, (2, 2, 7))
  )


def test_the_consecutive_form():
  check(kd.cc("tap", "tap", "consecutive"), consecutive64, maps(0, (7,)), maps(1, (7,)))


@pytest.mark.parametrize(("form", "oracle"), [("kernel", kernel64), ("consecutive", consecutive64)])
def test_trained_embeddings(form, oracle):
  loss, s, t = kd.cc("tap", "tap", form, width=4), maps(0, (2, 2, 3)), maps(1, (5,))
  given = begin(loss, s, t)
  aux = given["aux"][0]

  def embedded(s, t):
    return oracle(layer64(aux["student"], s.reshape(BATCH, -1)), layer64(aux["teacher"], t.reshape(BATCH, -1)))

  check(loss, embedded, s, t, **given)


def test_the_series_becomes_the_gaussian_kernel():
  s, t = maps(0, (5,)), maps(1, (7,))

  def gaussian(x):
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return np.exp(-0.4 * ((x[:, None] - x[None]) ** 2).sum(-1))

  want = ((gaussian(s) - gaussian(t)) ** 2).sum(-1) / BATCH
  np.testing.assert_allclose(value(kd.cc("tap", "tap", order=12), s, t), want, rtol=1e-5, atol=1e-8)


def test_by_hand():
  # Orthogonal students, equal teachers: the cosines differ by 1 off the diagonal, order 1, gamma 1/2: exp(-1) each.
  s, t = np.eye(2), np.ones((2, 3))
  np.testing.assert_allclose(value(kd.cc("tap", "tap", gamma=0.5, order=1), s, t), np.exp(-2.0) / 2, rtol=1e-6)
  # Gaps (1, 2), (3, 0), (1, 1): products 3 and 3 of neighbours, and a mean of 3 over the two pairs.
  s, t = np.array([[1.0, 2], [3, 0], [1, 1]]), np.zeros((3, 2))
  got = value(kd.cc("tap", "tap", "consecutive"), s, t)
  np.testing.assert_allclose(got, [4.5, 4.5, 0], rtol=1e-6)
  np.testing.assert_allclose(got.mean(), 3.0, rtol=1e-6)


@pytest.mark.parametrize(("form", "oracle"), [("kernel", kernel64), ("consecutive", consecutive64)])
def test_masked_examples_are_ignored(form, oracle):
  s, t = maps(0, (7,)), maps(1, (7,))
  valid = np.array([1, 0, 1, 1, 0, 1], bool)
  got = value(kd.cc("tap", "tap", form), s, t, batch=batch(valid=jnp.asarray(valid)))
  np.testing.assert_allclose(np.asarray(got)[valid], oracle(s[valid], t[valid]), rtol=1e-5, atol=1e-8)


def test_the_consecutive_form_over_devices():
  """A pair may lie on two devices."""
  s, t = (jnp.float32(np.concatenate([maps(seed, (7,)), maps(seed + 5, (7,))])[:8]) for seed in (0, 1))
  loss = kd.cc("tap", "tap", "consecutive")

  def local(s, t, class_mask):
    student, teacher = kd.Outputs(s[:, :2], {"tap": s}), kd.Outputs(t[:, :2], {"tap": t})
    return loss(student, teacher, {"valid": class_mask}, axis_name="devices")[0]

  spec = jax.sharding.PartitionSpec("devices")
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:4]), ("devices",))
  class_mask = jnp.asarray([1, 1, 1, 0, 0, 0, 1, 1], bool)
  got = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec))(s, t, class_mask)
  kept = np.flatnonzero(class_mask)
  np.testing.assert_allclose(np.asarray(got)[kept], consecutive64(np.float64(s)[kept], np.float64(t)[kept]), rtol=1e-5)


def test_mistakes_are_named():
  with pytest.raises(UserError, match="form of cc 'kernal'"):
    kd.cc("tap", "tap", "kernal")
  with pytest.raises(UserError, match="cc: gamma is 0; expected a number above 0"):
    kd.cc("tap", "tap", gamma=0)
  with pytest.raises(UserError, match="cc: order is 0; expected a whole number from 1 to 100"):
    kd.cc("tap", "tap", order=0)
  with pytest.raises(UserError, match="cc: embeddings are 7 and 5 wide; expected one width, or give 'width'"):
    value(kd.cc("tap", "tap", "consecutive"), maps(0, (7,)), maps(1, (5,)))
