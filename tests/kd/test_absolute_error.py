"""Absolute distances against numpy and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.on_logits import check, check_minus_infinity


def test_value_and_gradient_are_the_formulas():
  check(kd.absolute_error(), lambda s, t, labels: np.abs(s - t).sum(-1))
  check_minus_infinity(kd.absolute_error())


def test_by_hand_from_the_batch():
  loss, data = kd.absolute_error(source="batch"), {"target": jnp.asarray([[1.0], [-2.0], [0.0]])}
  assert not loss.needs_teacher
  s = jnp.zeros((3, 1))
  np.testing.assert_array_equal(loss(s, None, data)[0], [1.0, 2.0, 0.0])
  np.testing.assert_array_equal(jax.grad(lambda s: loss(s, None, data)[0].sum())(s)[:, 0], [-1.0, 1.0, 0.0])


def test_mistakes_are_one_sentence():
  with pytest.raises(UserError, match="unknown source of absolute_error 'teachr'; did you mean 'teacher'"):
    kd.absolute_error("teachr")
