"""Binary cross-entropy of several labels and of one against optax and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import BATCH, logits

ON = np.random.default_rng(5).uniform(size=(BATCH, 5)) < 0.4
LOSS = kd.sigmoid_cross_entropy()


@pytest.mark.parametrize("label", [ON, ON.astype(np.int32), ON.astype(np.float64), 0.1 + 0.8 * ON])
def test_value_and_gradient_are_those_of_optax(label):
  with jax.enable_x64(True):
    run = lambda s: LOSS(s, None, {"label": jnp.asarray(label)})[0]
    want = lambda s: optax.sigmoid_binary_cross_entropy(s, jnp.asarray(label, jnp.float64)).sum(-1)
    s = jnp.asarray(logits(0))
    np.testing.assert_allclose(run(s), want(s), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(lambda s: run(s).sum())(s), jax.grad(lambda s: want(s).sum())(s), rtol=1e-10)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_one_output_by_hand(shape):
  # q = 3/4: on -log(3/4), off -log(1/4); half on is their mean.
  label = jnp.asarray([1.0, 0.0, 0.5]).reshape(shape)
  got = LOSS(jnp.full((3, 1), np.log(3.0), jnp.float32), None, {"label": label})[0]
  np.testing.assert_allclose(got, [np.log(4 / 3), np.log(4), np.log(16 / 3) / 2], rtol=1e-6)


def test_every_position_has_its_labels():
  s, label = jnp.asarray(logits(1), jnp.float32), jnp.asarray(ON)
  rows = LOSS(s, None, {"label": label})[0]
  np.testing.assert_array_equal(
    LOSS(s.reshape(2, 3, 5), None, {"label": label.reshape(2, 3, 5)})[0], rows.reshape(2, 3)
  )
  one = LOSS(s.reshape(2, 3, 5)[..., :1], None, {"label": label.reshape(2, 3, 5)[..., 0]})[0]
  np.testing.assert_array_equal(one, LOSS(s[:, :1], None, {"label": label[:, :1]})[0].reshape(2, 3))


def test_at_two_classes_it_is_hard_labels():
  s = jnp.asarray(logits(2)[:, :1], jnp.float32)
  index = jnp.arange(BATCH, dtype=jnp.int32) % 2
  hard = kd.hard_labels()(jnp.concatenate([0 * s, s], -1), None, {"label": index})[0]
  np.testing.assert_allclose(LOSS(s, None, {"label": index})[0], hard, rtol=1e-6)


def test_an_output_that_is_excluded_is_off():
  s = jnp.asarray([[-jnp.inf, 0.0]])
  off, on = (LOSS(s, None, {"label": jnp.asarray([[x, 0.0]])})[0] for x in (0.0, 1.0))
  np.testing.assert_allclose(off, [np.log(2)], rtol=1e-6)
  assert on == jnp.inf
  gradient = jax.grad(lambda s: LOSS(s, None, {"label": jnp.zeros((1, 2))})[0].sum())(s)
  np.testing.assert_allclose(gradient, [[0.0, 0.5]])


@pytest.mark.parametrize("wrong", [-1.0, 2.0, np.nan])
def test_labels_outside_zero_to_one(wrong):
  label, valid = jnp.asarray(ON, jnp.float32).at[2, 0].set(wrong), jnp.arange(BATCH) != 2
  with pytest.raises(UserError, match=rf"expects batch\['label'\] to be from 0 to 1; got {wrong} in 1 of 30"):
    LOSS(jnp.zeros((BATCH, 5)), None, {"label": label})
  run = jax.jit(lambda s, label, **more: LOSS(s, None, {"label": label, **more})[0])
  np.testing.assert_array_equal(np.isnan(run(jnp.zeros((BATCH, 5)), label)), ~np.asarray(valid))
  for numbers in (
    run(jnp.zeros((BATCH, 5)), label, valid=valid),
    LOSS(jnp.zeros((BATCH, 5)), None, {"label": label, "valid": valid})[0],
  ):
    np.testing.assert_allclose(numbers, np.where(valid, 5 * np.log(2), 0), rtol=1e-6)
  gradient = jax.grad(lambda s: run(s, label, valid=valid).sum())(jnp.zeros((BATCH, 5)))
  assert (gradient[2] == 0).all() and np.isfinite(gradient).all()


def test_a_label_that_is_not_known_of_an_output_leaves_by_class_mask():
  s, known = jnp.asarray(logits(3), jnp.float32), np.random.default_rng(6).uniform(size=(BATCH, 5)) < 0.6
  label = jnp.asarray(np.where(known, ON, -1))
  run = lambda label: LOSS(s, None, {"label": label}, class_mask=jnp.asarray(known))[0]
  want = np.where(known, optax.sigmoid_binary_cross_entropy(s, jnp.asarray(ON, jnp.float32)), 0).sum(-1)
  for numbers in (run(label), jax.jit(run)(label)):
    np.testing.assert_allclose(numbers, want, rtol=1e-5)


def test_mistakes_are_one_sentence():
  s = jnp.zeros((BATCH, 5))
  with pytest.raises(UserError, match="'sigmoid_cross_entropy' needs labels, and the batch has no 'label'"):
    LOSS(s, None)
  with pytest.raises(UserError, match=r"say whether each output is on, .* of the shape \(6, 5\); got int32 \(6,\)"):
    LOSS(s, None, {"label": jnp.zeros(BATCH, jnp.int32)})
  with pytest.raises(UserError, match=r"of the shape \(6, 1\) or \(6,\); got float32 \(6, 2\)"):
    LOSS(s[:, :1], None, {"label": jnp.zeros((BATCH, 2))})
