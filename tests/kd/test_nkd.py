"""Normalised distillation against the paper's equation, by hand, and where it is least."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import labels, logits
from tests.kd.on_logits import ROWS, check, check_minus_infinity, check_mixed, softmax, value


def oracle(gamma, temperature):
  def numbers(s, t, labels):
    out = []
    for a, b, y in zip(s, t, labels, strict=True):
      n_p, n_q = softmax(np.delete(b, y), temperature), softmax(np.delete(a, y), temperature)
      target = -softmax(b)[y] * np.log(softmax(a)[y])
      out.append(target - gamma * temperature**2 * (n_p * np.log(n_q)).sum())
    return np.array(out)

  return numbers


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("gamma", "temperature"), [(1.5, 1.0), (0.5, 3.0), (0.0, 1.0)])
def test_value_and_gradient_are_the_papers(gamma, temperature):
  check(kd.nkd(gamma, temperature), oracle(gamma, temperature))


def test_by_hand():
  # p = (1/2, 1/3, 1/6), q uniform, label 0: 1/2 log 3, and the entropy of (2/3, 1/3) against (1/2, 1/2) is log 2.
  t = jnp.log(jnp.asarray([[3.0, 2.0, 1.0]]))
  got = kd.nkd(2.0)(jnp.zeros((1, 3)), t, {"label": jnp.zeros((1,), jnp.int32)})[0]
  np.testing.assert_allclose(got, [0.5 * np.log(3) + 2 * np.log(2)], rtol=1e-6)


def test_the_other_classes_part_is_nckd_plus_an_entropy():
  s, t = logits(2), logits(3)
  with jax.enable_x64(True):
    part = value(kd.nkd(1.0, 3.0), s, t) - value(kd.nkd(0.0, 3.0), s, t)
    entropy = value(kd.nkd(1.0, 3.0), t, t) - value(kd.nkd(0.0, 3.0), t, t)
    np.testing.assert_allclose(part - entropy, value(kd.dkd(0, 1, 3.0), s, t), rtol=1e-10)


def test_the_first_part_is_the_label_s_loss_by_the_teacher_s_trust():
  s, t = logits(2), logits(3)
  trust = softmax(t)[ROWS, labels()]
  np.testing.assert_allclose(value(kd.nkd(0.0), s, t), trust * value(kd.hard_labels(), s, t), rtol=1e-5)


def test_a_class_excluded_by_minus_infinity():
  check_minus_infinity(kd.nkd())


def test_two_labels_of_a_mixed_example():
  check_mixed(kd.nkd())


def test_mistakes_are_one_sentence():
  with pytest.raises(UserError, match="nkd: gamma is -1; expected a number, 0 or more"):
    kd.nkd(gamma=-1)
  with pytest.raises(UserError, match="nkd: temperature is 0"):
    kd.nkd(temperature=0)
  with pytest.raises(UserError, match="'nkd' needs labels"):
    kd.nkd()(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
