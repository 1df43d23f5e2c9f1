"""Factor transfer against the paper's equations in float64, by hand, and which term trains what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import BATCH, batch, check, maps, outputs, value
from tests.kd.oracles import begin, layer64, pool64


def stack64(aux, x):
  for part in aux:
    x = layer64(part, x)
    x = np.where(x > 0, x, 0.1 * x)
  return x


def described(factor, form):
  factor = factor if form == "factors" else (factor**2).mean(-1)
  flat = factor.reshape(len(factor), -1)
  return flat / np.sqrt((flat**2).sum(-1, keepdims=True))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("form", ["factors", "attention"])
def test_value_and_gradient_are_the_papers(form):
  loss, s, t = kd.ft("tap", "tap", form, reconstruction=0.3), maps(0, (3, 3, 3)), maps(1, (3, 3, 4))
  given = begin(loss, s, t)

  def oracle(s, t):
    aux = given["aux"][0]
    factor = stack64(aux["encoder"], t)
    rebuilt = ((stack64(aux["decoder"], factor) - t) ** 2).mean((1, 2, 3))
    gap = described(stack64(aux["translator"], s), form) - described(factor, form)
    return np.abs(gap).mean(-1) + 0.3 * rebuilt

  check(loss, oracle, s, t, **given)


def test_by_hand():
  # Kernels that keep the middle of the window: the factor is the map (3, 4), its norm 5; the student's is (1, 0).
  one = np.zeros((3, 3, 1, 1))
  one[1, 1] = 1
  same = [{"kernel": one, "bias": np.zeros(1)}] * 3
  aux = [{"encoder": same, "decoder": same, "translator": same}]
  s, t = np.array([[[[2.0], [0.0]]]]), np.array([[[[3.0], [4.0]]]])
  np.testing.assert_allclose(value(kd.ft("tap", "tap"), s, t, aux=aux), [(0.4 + 0.8) / 2], rtol=1e-6)


@pytest.mark.slow
def test_the_larger_factor_is_averaged_down():
  loss, s, t = kd.ft("tap", "tap"), maps(0, (2, 2, 3)), maps(1, (4, 4, 4))
  given = begin(loss, s, t)
  aux = given["aux"][0]
  factor = stack64(aux["encoder"], t)
  gap = described(stack64(aux["translator"], s), "factors") - described(pool64(factor, 2, 2), "factors")
  _, _, logs = loss(outputs({"tap": s}), outputs({"tap": t}), batch(), **given)
  np.testing.assert_allclose(value(loss, s, t, **given) - logs["reconstruction"], np.abs(gap).mean(-1), rtol=1e-4)
  assert logs["reconstruction"].shape == (BATCH,)


def gradients(loss, given, s, t, step):
  def total(aux, s):
    return value(loss, kd.Outputs(jnp.zeros((BATCH, 5)), {"tap": s}), t, aux=aux, step=step).sum()

  aux, s = jax.tree.map(jnp.float32, (given["aux"], s))
  trained, student = jax.jit(jax.grad(total, (0, 1)))(aux, s)
  return {name: max(float(jnp.abs(a).max()) for a in jax.tree.leaves(part)) for name, part in trained[0].items()} | {
    "student": float(jnp.abs(student).max())
  }


def test_only_the_reconstruction_trains_the_paraphraser():
  s, t = maps(0, (3, 3, 3)), maps(1, (3, 3, 4))
  given = begin(kd.ft("tap", "tap"), s, t)
  whole, double = (gradients(kd.ft("tap", "tap", reconstruction=w), given, s, t, 0) for w in (1.0, 2.0))
  for part in ("encoder", "decoder"):
    np.testing.assert_allclose(double[part], 2 * whole[part], rtol=1e-5)
  for part in ("translator", "student"):
    np.testing.assert_allclose(double[part], whole[part], rtol=1e-5)


def test_the_paraphraser_may_learn_first_and_stand_still_afterwards():
  s, t = maps(0, (3, 3, 3)), maps(1, (3, 3, 4))
  loss = kd.ft("tap", "tap", pretrain=5)
  given = begin(loss, s, t)
  before, after = gradients(loss, given, s, t, 4), gradients(loss, given, s, t, 5)
  assert before["encoder"] > 0 and before["decoder"] > 0 and before["translator"] == before["student"] == 0
  assert after["encoder"] == after["decoder"] == 0 and after["translator"] > 0 and after["student"] > 0


def test_mistakes_are_named():
  with pytest.raises(UserError, match="ft: form is 'paper'; expected 'factors' or 'attention'"):
    kd.ft("tap", "tap", "paper")
  with pytest.raises(UserError, match="ft: rate is 0; expected a number above 0"):
    kd.ft("tap", "tap", rate=0)
  with pytest.raises(UserError, match="ft: reconstruction is 0; expected a number above 0"):
    kd.ft("tap", "tap", reconstruction=0)
  with pytest.raises(UserError, match="ft: pretrain is -1; expected a whole number, 0 or more"):
    kd.ft("tap", "tap", pretrain=-1)
  with pytest.raises(
    UserError,
    match=r"the loss 'ft' reads 'tap' of the student, of shape \(6, 3\); expected \(batch, height, width, channels\)",
  ):
    begin(kd.ft("tap", "tap"), maps(0, (3,)), maps(0, (3,)))
