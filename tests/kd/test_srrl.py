"""Softmax regression representation learning against the equations in float64, by hand, and what is kept frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

import kd
from leanax.core.errors import UserError
from tests.kd.nets import BATCH, CLASSES, batch, check, maps, outputs, value
from tests.kd.oracles import begin, layer64

HEAD = {
  "kernel": jnp.asarray(np.random.default_rng(5).normal(size=(3, CLASSES)), jnp.float32),
  "bias": jnp.asarray(np.random.default_rng(6).normal(size=CLASSES), jnp.float32),
}
VARIABLES = {"params": {"net": {"head": HEAD}}}


def make(**more):
  return kd.srrl("tap", "tap", "net/head", **more)


def kl64(s, t):
  return (softmax(t, -1) * (log_softmax(t, -1) - log_softmax(s, -1))).sum(-1)


@pytest.mark.parametrize("form", ["l2", "kl"])
@pytest.mark.parametrize("shape", [(), (2, 4)])
def test_value_and_gradient_are_the_papers(form, shape):
  loss, s, t = make(form=form, matching=0.5, regression=2.0), maps(0, (*shape, 4)), maps(1, (*shape, 3))
  given = begin(loss, s, t, VARIABLES)
  kernel, bias = (np.asarray(HEAD[name], np.float64) for name in ("kernel", "bias"))

  def oracle(s, t):
    x = np.maximum(layer64(given["aux"], s), 0)
    student_logits, teacher_logits = (f.reshape(BATCH, -1, 3).mean(1) @ kernel + bias for f in (x, t))
    distance = (
      ((student_logits - teacher_logits) ** 2).mean(-1) if form == "l2" else kl64(student_logits, teacher_logits)
    )
    return 0.5 * ((x - t) ** 2).reshape(BATCH, -1).mean(-1) + 2 * distance

  check(loss, oracle, s, t, **given)


def test_by_hand():
  # The student's feature is its offset 2 and the teacher's is 3; W = (1, 4): gaps of 1, of 1 and 4; 1 + (1 + 16) / 2.
  given = {
    "aux": {"kernel": np.ones((2, 1)), "scale": np.zeros(1), "offset": np.full(1, 2.0)},
    "aux_state": {"kernel": jnp.asarray([[1.0, 4.0]]), "bias": jnp.ones(2)},
  }
  np.testing.assert_allclose(value(make(), maps(0, (2,)), np.full((BATCH, 1), 3.0), **given), 9.5, rtol=1e-6)


@pytest.mark.parametrize("form", ["l2", "kl"])
def test_masked_classes_do_not_exist(form):
  loss, s, t = make(form=form), maps(0, (4,)), maps(1, (3,))
  given, kept = begin(loss, s, t, VARIABLES), np.array([0, 1, 3])
  class_mask = jnp.asarray(np.isin(np.arange(CLASSES), kept))
  small = {"kernel": np.asarray(HEAD["kernel"])[:, kept], "bias": np.asarray(HEAD["bias"])[kept]}
  want = value(loss, s, t, aux=given["aux"], aux_state=small)
  np.testing.assert_allclose(value(loss, s, t, class_mask=class_mask, **given), want, rtol=1e-5)


@pytest.mark.parametrize("form", ["l2", "kl"])
def test_an_example_without_classes_has_loss_0(form):
  loss, s, t = make(form=form, matching=0.0), maps(0, (4,)), maps(1, (3,))
  given = begin(loss, s, t, VARIABLES)
  class_mask = jnp.asarray(np.repeat(np.arange(BATCH) != 2, CLASSES).reshape(BATCH, CLASSES))
  want = np.where(np.arange(BATCH) == 2, 0.0, value(loss, s, t, **given))
  np.testing.assert_allclose(value(loss, s, t, class_mask=class_mask, **given), want, rtol=1e-5)


def test_the_classifier_is_a_frozen_copy():
  loss, s, t = make(), maps(0, (4,)), maps(1, (3,))
  given = begin(loss, s, t, VARIABLES)
  _, after, logs = loss(outputs({"tap": s}), outputs({"tap": t}), batch(), **given)
  jax.tree.map(np.testing.assert_array_equal, after, HEAD)
  assert after["kernel"] is not HEAD["kernel"] and set(logs) == {"matching", "regression"}
  np.testing.assert_allclose(value(loss, s, t, **given), logs["matching"] + logs["regression"], rtol=1e-6)


def test_mistakes_are_named():
  with pytest.raises(UserError, match="srrl: 2 taps of each network; expected 1"):
    kd.srrl(("a", "b"), ("a", "b"))
  with pytest.raises(UserError, match="srrl: form is 'l1'; expected 'l2' or 'kl'"):
    make(form="l1")
  with pytest.raises(UserError, match="srrl: matching is -1; expected a number, 0 or more"):
    make(matching=-1)
  with pytest.raises(UserError, match="unknown classifier of the loss 'srrl' 'head'; did you mean 'net/head'"):
    begin(kd.srrl("tap", "tap", "head"), maps(0, (4,)), maps(1, (3,)), VARIABLES)
  with pytest.raises(UserError, match="srrl: the classifier 'net/head' reads 3 features and the teacher's tap has 7"):
    begin(make(), maps(0, (4,)), maps(1, (7,)), VARIABLES)
