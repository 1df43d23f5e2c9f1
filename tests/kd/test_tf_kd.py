"""The virtual teacher against both of its forms in numpy, by hand, and at the limits of the temperature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import BATCH, CLASSES, labels, logits
from tests.kd.on_logits import check, check_mixed, kl, softmax, value


def virtual(classes, labels, correct):
  p = np.full((len(labels), classes), (1 - correct) / (classes - 1))
  p[np.arange(len(labels)), labels] = correct
  return p


def oracle(correct, temperature, soften_student):
  def numbers(s, t, labels):
    p = virtual(s.shape[-1], labels, correct)
    if not soften_student:
      return kl(softmax(p, temperature), softmax(s))
    root = p ** (1 / temperature)
    return temperature**2 * kl(root / root.sum(-1, keepdims=True), softmax(s, temperature))

  return numbers


@pytest.mark.sampled(3)
@pytest.mark.parametrize("soften_student", [False, True])
@pytest.mark.parametrize(("correct", "temperature"), [(0.99, 20.0), (0.9, 2.0)])
def test_value_and_gradient_are_the_formulas(correct, temperature, soften_student):
  check(kd.tf_kd(correct, temperature, soften_student), oracle(correct, temperature, soften_student), teacher=False)


def test_by_hand():
  # Three classes, a = 3/4, T = 1/8: softmax of (6, 1, 1) against a uniform student.
  got = kd.tf_kd(0.75, 0.125)(jnp.zeros((1, 3)), None, {"label": jnp.zeros((1,), jnp.int32)})[0]
  p = np.array([np.exp(5), 1, 1]) / (np.exp(5) + 2)
  np.testing.assert_allclose(got, [np.log(3) + (p * np.log(p)).sum()], rtol=1e-5)


def test_the_second_form_is_hinton_from_the_virtual_teacher():
  s = logits(2)
  t = np.log(virtual(CLASSES, labels(), 0.95))
  np.testing.assert_allclose(value(kd.tf_kd(0.95, 20.0, True), s, None), value(kd.hinton(20.0), s, t), rtol=1e-4)


def test_a_high_temperature_asks_for_a_uniform_output():
  s = logits(2)
  want = -np.log(CLASSES) - np.log(softmax(s)).mean(-1)
  with jax.enable_x64(True):
    np.testing.assert_allclose(value(kd.tf_kd(temperature=1e4), s, None), want, rtol=2e-4)


def test_a_right_answer_costs_less_than_a_wrong_one():
  loss, right = kd.tf_kd(), 3 * np.eye(CLASSES)[labels()]
  assert (value(loss, right, None) < value(loss, np.roll(right, 1, -1), None)).all()


def test_no_teacher_is_read():
  loss, s = kd.tf_kd(), logits(2)
  np.testing.assert_array_equal(value(loss, s, logits(3)), value(loss, s, None))
  assert not loss.needs_teacher


@pytest.mark.parametrize("soften_student", [False, True])
def test_two_labels_of_a_mixed_example(soften_student):
  check_mixed(kd.tf_kd(soften_student=soften_student), teacher=False)


def test_mistakes_are_one_sentence():
  with pytest.raises(UserError, match="tf_kd: correct is 1; expected a number above 0 and below 1"):
    kd.tf_kd(correct=1)
  with pytest.raises(UserError, match="tf_kd: temperature is 0"):
    kd.tf_kd(temperature=0)
  with pytest.raises(UserError, match="'tf_kd' needs labels"):
    kd.tf_kd()(jnp.zeros((BATCH, CLASSES)), None)
