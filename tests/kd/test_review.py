"""Knowledge review against the paper's blocks in float64 with loops, by hand, and at its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from kd.losses.review import hierarchical, nearest
from leanax.core.errors import UserError
from tests.kd.nets import check, maps, outputs, value
from tests.kd.oracles import begin, layer64, pool64

THREE = ("a", "b", "c")


def context64(s, t):
  total, weights = ((s - t) ** 2).mean((1, 2, 3)), 1.0
  for side, weight in ((4, 0.5), (2, 0.25), (1, 0.125)):
    if side < s.shape[1]:
      weight *= {8: 1, 4: 2, 2: 4}[s.shape[1]]  # the first that is smaller has 1/2
      total += weight * ((pool64(s, side, side) - pool64(t, side, side)) ** 2).mean((1, 2, 3))
      weights += weight
  return total / weights


def nearest64(x, size):
  out = np.zeros((len(x), *size, x.shape[3]))
  for i in range(size[0]):
    for j in range(size[1]):
      out[:, i, j] = x[:, i * x.shape[1] // size[0], j * x.shape[2] // size[1]]
  return out


def review64(aux, s, t):
  """s, t: lists from early to late."""
  total, carried = 0.0, None
  for part, student, teacher in list(zip(aux, s, t, strict=True))[::-1]:
    student, teacher = (x[:, None, None] if x.ndim == 2 else x for x in (student, teacher))
    x = layer64(part["reduce"], student)
    if carried is not None:
      y = nearest64(carried, x.shape[1:3])
      gates = 1 / (1 + np.exp(-layer64(part["gates"], np.concatenate([x, y], -1))))
      x = x * gates[..., [0]] + y * gates[..., [1]]
    carried = nearest64(x, teacher.shape[1:3])
    total = total + context64(layer64(part["out"], carried), teacher)
  return total


def test_value_is_the_papers():
  s = {"a": maps(0, (8, 8, 2)), "b": maps(1, (2, 2, 3)), "c": maps(2, (5,))}
  t = {"a": maps(3, (4, 4, 4)), "b": maps(4, (2, 2, 3)), "c": maps(5, (6,))}
  loss = kd.review(THREE, THREE)
  given = begin(loss, s, t)
  want = review64(given["aux"], list(s.values()), list(t.values()))
  with jax.enable_x64(True):
    got = value(loss, outputs(s, dtype=np.float64), outputs(t, dtype=np.float64), **given)
  np.testing.assert_allclose(got, want, rtol=1e-12)
  np.testing.assert_allclose(value(loss, outputs(s), outputs(t), **given), want, rtol=1e-4)


def test_gradient_is_the_finite_difference():
  """One tap given twice."""
  loss, s, t = kd.review(("tap", "tap"), ("tap", "tap")), maps(0, (4, 4, 2)), maps(1, (4, 4, 3))
  given = begin(loss, s, t)
  check(loss, lambda s, t: review64(given["aux"], [s] * 2, [t] * 2), s, t, **given)


def test_context_by_hand():
  # A gap of 1 everywhere costs 1 at every size; one of +1 and -1 in turn only at full size, 1 / (1 + 1/2 + 1/4).
  zero, one = jnp.zeros((1, 4, 4, 1)), jnp.ones((1, 4, 4, 1))
  turns = one * jnp.asarray([1.0, -1.0, 1.0, -1.0])[:, None, None]
  np.testing.assert_allclose(hierarchical(one, zero), [1.0], rtol=1e-6)
  np.testing.assert_allclose(hierarchical(turns, zero), [1 / 1.75], rtol=1e-6)
  np.testing.assert_allclose(hierarchical(one[:, :1, :1], zero[:, :1, :1]), [1.0])
  x = maps(0, (8, 8, 1))
  np.testing.assert_allclose(
    hierarchical(jnp.asarray(x, jnp.float32), jnp.zeros(x.shape)), context64(x, 0 * x), rtol=1e-5
  )


def test_nearest_repeats_and_drops():
  x = np.arange(2.0).reshape(1, 2, 1, 1)
  np.testing.assert_array_equal(nearest(x, (4, 2))[0, :, 0, 0], [0, 0, 1, 1])
  np.testing.assert_array_equal(nearest(np.arange(4.0).reshape(1, 4, 1, 1), (2, 1))[0, :, 0, 0], [0, 2])


def test_the_width_is_that_of_the_last_tap():
  s, t = {"a": maps(0, (4, 4, 2)), "b": maps(1, (7,))}, {"a": maps(0, (4, 4, 3)), "b": maps(1, (5,))}
  for width, inner in ((None, 7), (3, 3)):
    aux = begin(kd.review(("a", "b"), ("a", "b"), width), s, t)["aux"]
    assert aux[0]["reduce"]["kernel"].shape == (2, inner) and aux[1]["out"]["kernel"].shape == (3, 3, inner, 5)
    assert "gates" in aux[0] and "gates" not in aux[1]


def test_mistakes_are_named():
  with pytest.raises(UserError, match="review: 1 tap of each network; expected 2 or more, from early to late"):
    kd.review("tap", "tap")
  with pytest.raises(UserError, match="review: width is 0; expected a whole number, 1 or more"):
    kd.review(("a", "b"), ("a", "b"), width=0)
  loss, x = kd.review(("tap", "tap"), ("tap", "tap")), maps(0, (3, 4))
  with pytest.raises(
    UserError, match=r"the loss 'review' reads 'tap' of the student, of shape \(6, 3, 4\); expected \(batch, height"
  ):
    value(loss, x, x, **begin(loss, x, x))
