"""Overhaul of feature distillation against the authors' cases in float64, by hand, and its margins against scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate
from scipy.stats import norm

import kd
from kd.losses.ofd import measured, negative_mean
from leanax.core.errors import UserError
from tests.kd.nets import BATCH, batch, check, maps, value
from tests.kd.oracles import begin, layer64

VARIABLES = {
  "params": {"block": {"bn": {"scale": jnp.asarray([1.0, -2.0, 0.5]), "bias": jnp.asarray([0.3, -1.0, 0.0])}}}
}


def partial64(s, t, margin):
  """The three cases one by one, as the authors have them."""
  out = np.zeros(len(s))
  for i in range(len(s)):
    for one, goal, m in zip(s[i].flat, t[i].flat, np.broadcast_to(margin, t[i].shape).flat, strict=True):
      if goal > 0 or (goal > m and one > goal):
        out[i] += (one - goal) ** 2
      elif goal <= m and one > m:
        out[i] += (one - m) ** 2
  return out


@pytest.mark.parametrize("shape", [(4, 4), ()])
def test_value_and_gradient_are_the_papers(shape):
  loss, s, t = kd.ofd("tap", "tap", "block/bn"), maps(0, (*shape, 4)), maps(1, (*shape, 3))
  given = begin(loss, s, t, VARIABLES)
  margin = np.asarray(given["aux_state"]["margin"][0], np.float64)
  check(loss, lambda s, t: partial64(layer64(given["aux"][0], s), t, margin), s, t, **given)


def test_margins_may_be_measured_on_the_batch():
  loss, s, t = kd.ofd("tap", "tap"), maps(0, (4, 4, 4)), maps(1, (4, 4, 3))
  given = begin(loss, s, t)
  margin = np.array([t[..., c][t[..., c] < 0].mean() for c in range(3)])
  check(loss, lambda s, t: partial64(layer64(given["aux"][0], s), t, margin), s, t, **given)
  some = jnp.arange(BATCH) < 2
  t[2:] *= 50
  got = measured(jnp.asarray(t, jnp.float32), kd.Context({"valid": some}))
  np.testing.assert_allclose(got, [t[:2, ..., c][t[:2, ..., c] < 0].mean() for c in range(3)], rtol=1e-5)
  np.testing.assert_array_equal(measured(jnp.ones((2, 3)), kd.Context({})), 0)


def test_by_hand():
  # The student gives (1, -1, -5, 0.5) to margin -2 and the teacher's (3, -1.5, -4, -4): 4, 0.25, nothing, (0.5 + 2)^2.
  aux = [{"kernel": np.ones((2, 4)), "scale": np.zeros(4), "offset": np.array([1, -1, -5, 0.5])}]
  t = np.tile([3, -1.5, -4, -4.0], (BATCH, 1))
  given = {"aux": aux, "aux_state": {"margin": [jnp.full(4, -2.0)]}}
  np.testing.assert_allclose(value(kd.ofd("tap", "tap", "bn"), maps(0, (2,)), t, **given), 10.5, rtol=1e-6)


def test_margins_are_truncated_means():
  for mean, deviation in ((0.3, 1.0), (-1.0, 2.0), (2.0, 0.9), (0.0, 0.5)):
    mass = norm.cdf(0, mean, deviation)
    want = integrate.quad(lambda x, m=mean, d=deviation: x * norm.pdf(x, m, d), -30, 0)[0] / mass
    for scale in (deviation, -deviation):
      np.testing.assert_allclose(negative_mean(jnp.asarray(mean), jnp.asarray(scale)), want, rtol=1e-4)
  rare = negative_mean(jnp.asarray([4.0, 1.0, -1.0, 0.0]), jnp.asarray([1.0, 0.0, 0.0, 0.0]))
  np.testing.assert_allclose(rare, [-3, 0, -1, 0], atol=1e-6)


def test_the_margins_are_remembered():
  loss, s, t = kd.ofd("tap", "tap", "block/bn"), maps(0, (4,)), maps(1, (3,))
  given = begin(loss, s, t, VARIABLES)
  after = loss(
    *(kd.Outputs(jnp.zeros((BATCH, 5)), {"tap": jnp.asarray(x, jnp.float32)}) for x in (s, t)), batch(), **given
  )
  jax.tree.map(np.testing.assert_array_equal, after[1], given["aux_state"])


def test_mistakes_are_named():
  with pytest.raises(UserError, match="ofd: 2 paths of batch_norm for 1 taps of the teacher; expected one for each"):
    kd.ofd("tap", "tap", ("a", "b"))
  with pytest.raises(UserError, match="unknown batch_norm of the loss 'ofd' 'bn'; did you mean 'block/bn'"):
    begin(kd.ofd("tap", "tap", "bn"), maps(0, (4,)), maps(1, (3,)), VARIABLES)
