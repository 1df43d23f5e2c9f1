"""Smoothed labels against the paper's equation, by hand, and as the losses they are made of."""

import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import BATCH, CLASSES, batch, labels, logits
from tests.kd.on_logits import check, check_mixed, softmax, value


def oracle(smoothing):
  def numbers(s, t, labels):
    target = (1 - smoothing) * np.eye(s.shape[-1])[labels] + smoothing / s.shape[-1]
    return -(target * np.log(softmax(s))).sum(-1)

  return numbers


@pytest.mark.sampled(2)
@pytest.mark.parametrize("smoothing", [0.1, 0.0, 0.5])
def test_value_and_gradient_are_the_papers(smoothing):
  check(kd.label_smoothing(smoothing), oracle(smoothing), teacher=False)


def test_by_hand():
  # q = (3/4, 1/4), label 0, epsilon 1/5: the target is (9/10, 1/10).
  s = jnp.log(jnp.asarray([[3.0, 1.0]]))
  got = kd.label_smoothing(0.2)(s, None, {"label": jnp.zeros((1,), jnp.int32)})[0]
  np.testing.assert_allclose(got, [0.9 * np.log(4 / 3) + 0.1 * np.log(4)], rtol=1e-6)


def test_without_smoothing_it_is_hard_labels():
  s = logits(2)
  np.testing.assert_allclose(value(kd.label_smoothing(0.0), s, None), value(kd.hard_labels(), s, None), rtol=1e-6)


def test_it_is_soft_labels_of_the_smoothed_target():
  s = logits(2)
  target = jnp.asarray(0.9 * np.eye(CLASSES)[labels()] + 0.1 / CLASSES, jnp.float32)
  soft = value(kd.soft_labels(source="batch"), s, None, batch=batch(soft_label=target))
  np.testing.assert_allclose(value(kd.label_smoothing(0.1), s, None), soft, rtol=1e-5)


def test_no_teacher_is_read():
  loss, s = kd.label_smoothing(), logits(2)
  np.testing.assert_array_equal(value(loss, s, logits(3)), value(loss, s, None))
  assert not loss.needs_teacher


def test_two_labels_of_a_mixed_example():
  check_mixed(kd.label_smoothing(0.3), teacher=False)


def test_mistakes_are_one_sentence():
  with pytest.raises(UserError, match="label_smoothing: smoothing is 1; expected a number from 0 to below 1"):
    kd.label_smoothing(1)
  with pytest.raises(UserError, match="'label_smoothing' needs labels"):
    kd.label_smoothing()(jnp.zeros((BATCH, CLASSES)), None)
