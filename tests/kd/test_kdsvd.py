"""Distillation by singular vectors against numpy's SVD in float64, by hand, and at equal or no singular values."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from kd.losses.kdsvd import right_vectors
from leanax.core.errors import UserError
from tests.kd.nets import check, maps, outputs, value

TWO = ("a", "b")


def described(s, t, count):
  """One example's vectors, (places, channels) each."""
  _, size, rows = np.linalg.svd(t, full_matrices=False)
  student_vectors = np.linalg.svd(s, full_matrices=False)[2][: count + 3]
  vectors, weight = [], size[:count] / np.linalg.norm(size[:count])
  for row, w in zip(rows[:count], weight, strict=True):
    row = -row if row.sum() < 0 else row
    cosines = student_vectors @ row
    best = np.argmax(np.abs(cosines))
    vectors.append((student_vectors[best] * np.sign(cosines[best]) * w, row * w))
  return np.array([v for v, _ in vectors]), np.array([v for _, v in vectors])


def oracle64(s, t, count):
  """s, t: lists of maps, from early to late."""
  out = np.zeros(len(s[0]))
  for i in range(len(out)):
    pairs = [described(*(x[i].reshape(-1, x.shape[-1]) for x in pair), count) for pair in zip(s, t, strict=True)]
    for (before_s, before_t), (now_s, now_t) in pairwise(pairs):
      for k in range(count):
        gap = [np.exp(-((a[k][:, None] - b[k]) ** 2) / 8) for a, b in ((now_s, before_s), (now_t, before_t))]
        out[i] += ((gap[0] - gap[1]) ** 2).sum()
  return out


@pytest.mark.sampled(3)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("channels", [3, 7])  # fewer than the places, and more
def test_value_is_the_papers(count, channels):
  s = {"a": maps(0, (4, 4, 3)), "b": maps(1, (2, 2, channels))}
  t = {"a": maps(3, (2, 4, 3)), "b": maps(4, (2, 3, channels))}
  want = oracle64(list(s.values()), list(t.values()), count)
  with jax.enable_x64(True):
    got = value(kd.kdsvd(TWO, TWO, count), outputs(s, dtype=np.float64), outputs(t, dtype=np.float64))
  np.testing.assert_allclose(got, want, rtol=1e-10)
  np.testing.assert_allclose(value(kd.kdsvd(TWO, TWO, count), outputs(s), outputs(t)), want, rtol=1e-3)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("shape", [(4, 4, 3), (2, 2, 6)])
def test_gradient_is_the_finite_difference(shape):
  """One tap given three times; the gaps between singular values are those of random matrices."""

  def oracle(s, t):
    return oracle64([s] * 3, [t] * 3, 2)

  s, t = maps(0, shape), maps(1, shape)
  s[..., 0] *= 3  # clear leading vectors, so that float32 finds them too
  t[..., 1] *= 3
  check(kd.kdsvd(("tap",) * 3, ("tap",) * 3, 2), oracle, s, t)


def test_by_hand():
  # Vectors (1, 0) and (0, 1): the kernels are exp(-1/8) off the diagonal for both, but for the student's with its own.
  s = {"a": np.array([[[[2.0, 0.0]]]]), "b": np.array([[[[5.0, 0.0]]]])}
  t = {"a": np.array([[[[3.0, 0.0]]]]), "b": np.array([[[[1.0, 1.0]]]])}
  r = np.sqrt(0.5)
  # The student keeps (1, 0) twice; the teacher's are (1, 0) and (r, r).
  student = np.array([[0, 1], [1, 0]])
  teacher = (np.array([[r], [r]]) - np.array([1.0, 0.0])) ** 2
  want = ((np.exp(-student / 8) - np.exp(-teacher / 8)) ** 2).sum()
  np.testing.assert_allclose(value(kd.kdsvd(TWO, TWO), outputs(s), outputs(t)), [want], rtol=1e-5)


def test_places_and_scales_do_not_matter():
  x = {"a": maps(0, (4, 4, 3)), "b": maps(1, (2, 2, 5))}
  turned = {"a": -3 * x["a"][:, ::-1], "b": 2 * x["b"]}
  np.testing.assert_allclose(value(kd.kdsvd(TWO, TWO), outputs(turned), outputs(x)), 0.0, atol=1e-8)


def test_equal_and_missing_singular_values_have_finite_gradients():
  equal = np.tile(np.eye(3).reshape(1, 3, 1, 3), (6, 1, 1, 1))
  single = np.ones((6, 2, 2, 3))
  loss = kd.kdsvd(("tap", "tap"), ("tap", "tap"), 2)
  total = lambda x: value(loss, kd.Outputs(jnp.zeros((6, 5)), {"tap": x}), maps(0, (2, 2, 3))).sum()
  slope = jax.jit(jax.grad(total))
  for s in (equal, single, 0 * single):
    gradient = np.asarray(slope(np.asarray(s, np.float32)))
    assert np.isfinite(gradient).all() and np.abs(gradient).max() < 1e4
  assert jnp.all(right_vectors(jnp.zeros((1, 2, 3)), 2)[0] == 0)


def test_mistakes_are_named():
  with pytest.raises(UserError, match="kdsvd: 1 tap of each network; expected 2 or more"):
    kd.kdsvd("tap", "tap")
  with pytest.raises(UserError, match="kdsvd: vectors is 0; expected a whole number, 1 or more"):
    kd.kdsvd(TWO, TWO, 0)
  two = kd.kdsvd(("tap", "tap"), ("tap", "tap"), 3)
  with pytest.raises(UserError, match="kdsvd: shapes .* expected the same channels"):
    value(two, maps(0, (4, 4, 3)), maps(1, (4, 4, 4)))
  different = {"a": maps(0, (4, 4, 2)), "b": maps(1, (4, 4, 3))}
  with pytest.raises(UserError, match="kdsvd: vectors is 3; expected at most the places and channels of every tap"):
    value(kd.kdsvd(TWO, TWO, 3), outputs(different), outputs(different))
