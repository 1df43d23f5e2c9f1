"""Inter-channel correlation against its equation with loops, by hand, and at its limits."""

import numpy as np

import kd
from tests.kd.nets import check, maps, value
from tests.kd.oracles import begin, layer64


def oracle(s, t):
  """Of maps whose channels are as many."""

  def correlation(x):
    x = x.reshape(-1, x.shape[-1])
    gram = np.array([[a @ b for b in x.T] for a in x.T])
    return gram / np.linalg.norm(gram, axis=-1, keepdims=True)

  return np.array([((correlation(a) - correlation(b)) ** 2).sum() / t.shape[-1] for a, b in zip(s, t, strict=True)])


def test_value_and_gradient_are_the_papers():
  loss, s, t = kd.ickd("tap", "tap"), maps(0, (4, 4, 3)), maps(1, (2, 2, 5))
  given = begin(loss, s, t)
  check(loss, lambda s, t: oracle(layer64(given["aux"][0], s), t), s, t, **given)


def projector(kernel):
  return [{"kernel": np.float32(kernel), "bias": np.zeros(len(kernel[0]), np.float32)}]


def test_by_hand():
  # The student's channels never meet: G is the identity. The teacher's are equal: rows of G (1, 1) / sqrt(2).
  s = np.array([[[[1.0, 0.0], [0.0, 1.0]]]])
  t = np.ones((1, 1, 2, 2))
  want = ((1 - np.sqrt(0.5)) ** 2 + 0.5) * 2 / 2
  np.testing.assert_allclose(value(kd.ickd("tap", "tap"), s, t, aux=projector(np.eye(2))), [want], rtol=1e-6)


def test_the_order_of_places_and_a_scale_do_not_matter():
  s, t = maps(2, (4, 4, 3)), maps(3, (3, 3, 3))
  loss, aux = kd.ickd("tap", "tap"), projector(np.eye(3))
  order = np.random.default_rng(0).permutation(16)
  moved = s.reshape(-1, 16, 3)[:, order].reshape(s.shape)
  np.testing.assert_allclose(value(loss, 5 * moved, t, aux=aux), value(loss, s, t, aux=aux), rtol=1e-4)
  np.testing.assert_allclose(value(loss, s, moved, aux=aux), 0.0, atol=1e-9)
