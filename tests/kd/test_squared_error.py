"""Squared distances against numpy, by hand, and as twice the regression on logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import logits
from tests.kd.on_logits import check, check_minus_infinity


def test_value_and_gradient_are_the_formulas():
  check(kd.squared_error(), lambda s, t, labels: ((s - t) ** 2).sum(-1))
  check_minus_infinity(kd.squared_error())


def test_it_is_twice_logit_l2():
  s, t = jnp.asarray(logits(0), jnp.float32), jnp.asarray(logits(1), jnp.float32)
  np.testing.assert_array_equal(kd.squared_error()(s, t)[0], 2 * kd.logit_l2()(s, t)[0])


def test_by_hand_from_the_batch():
  target = jnp.asarray([[1.0], [-2.0]])
  loss = kd.squared_error(source="batch")
  assert not loss.needs_teacher
  np.testing.assert_array_equal(loss(jnp.zeros((2, 1)), None, {"target": target})[0], [1.0, 4.0])
  np.testing.assert_array_equal(
    jax.grad(lambda s: loss(s, None, {"target": target})[0].sum())(jnp.zeros((2, 1))), [[-2.0], [4.0]]
  )


def test_a_target_that_does_not_count_may_hold_anything():
  data = {"target": jnp.asarray([[1.0], [jnp.nan]]), "valid": jnp.asarray([True, False])}
  loss = kd.squared_error(source="batch")
  np.testing.assert_array_equal(loss(jnp.zeros((2, 1)), None, data)[0], [1.0, 0.0])
  np.testing.assert_array_equal(jax.grad(lambda s: loss(s, None, data)[0].sum())(jnp.zeros((2, 1))), [[-2.0], [0.0]])


def test_mistakes_are_one_sentence():
  with pytest.raises(UserError, match="unknown source of squared_error 'teachr'; did you mean 'teacher'"):
    kd.squared_error("teachr")
  loss, s = kd.squared_error("batch"), jnp.zeros((3, 1))
  with pytest.raises(UserError, match=r"needs a batch with 'target', floats \(3, 1\)"):
    loss(s, None)
  with pytest.raises(UserError, match=r"expects batch\['target'\] to be floats \(3, 1\), .* got float32 \(3,\)"):
    loss(s, None, {"target": jnp.zeros(3)})
