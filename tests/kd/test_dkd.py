"""Decoupled distillation against the paper's equations, by hand, and its identity with plain distillation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import labels, logits
from tests.kd.on_logits import ROWS, check, check_minus_infinity, check_mixed, kl, softmax, value


def oracle(alpha, beta, temperature):
  def numbers(s, t, labels):
    out = []
    for p, q, y in zip(softmax(t, temperature), softmax(s, temperature), labels, strict=True):
      target = kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
      other = kl(np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y]))
      out.append(temperature**2 * (alpha * target + beta * other))
    return np.array(out)

  return numbers


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1.0, 8.0, 4.0), (0.5, 2.0, 1.0), (1.0, 0.0, 2.0)])
def test_value_and_gradient_are_the_papers(alpha, beta, temperature):
  check(kd.dkd(alpha, beta, temperature), oracle(alpha, beta, temperature))


def test_by_hand():
  # p = (1/2, 1/3, 1/6), q uniform, label 0: TCKD = 1/2 log(3/2) + 1/2 log(3/4), NCKD = 2/3 log(4/3) + 1/3 log(2/3).
  t = jnp.log(jnp.asarray([[3.0, 2.0, 1.0]]))
  target, other = 0.5 * np.log(9 / 8), 2 / 3 * np.log(4 / 3) + 1 / 3 * np.log(2 / 3)
  got = kd.dkd(1.0, 3.0, 1.0)(jnp.zeros((1, 3)), t, {"label": jnp.zeros((1,), jnp.int32)})[0]
  np.testing.assert_allclose(got, [target + 3 * other], rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_plain_distillation_is_tckd_plus_the_rest_of_nckd(temperature):
  s, t = logits(2), logits(3)
  p_label = softmax(t, temperature)[ROWS, labels()]
  with jax.enable_x64(True):
    target, other = value(kd.dkd(1, 0, temperature), s, t), value(kd.dkd(0, 1, temperature), s, t)
    np.testing.assert_allclose(target + (1 - p_label) * other, value(kd.hinton(temperature), s, t), rtol=1e-12)


def test_the_other_classes_count_where_the_teacher_is_sure():
  """p_label is 1 to the last bit of float32, and NCKD is still that of the other logits."""
  s, t = logits(2), logits(3)
  sure = t.copy()
  sure[ROWS, labels()] = 1e4
  np.testing.assert_allclose(value(kd.dkd(0, 1), s, sure), value(kd.dkd(0, 1), s, t), rtol=1e-5)
  assert (value(kd.dkd(0, 1), s, sure) > 0.1).all()


def test_a_class_excluded_by_minus_infinity():
  check_minus_infinity(kd.dkd())


def test_two_labels_of_a_mixed_example():
  check_mixed(kd.dkd())


def test_mistakes_are_one_sentence():
  with pytest.raises(UserError, match="dkd: alpha is -1; expected a number, 0 or more"):
    kd.dkd(alpha=-1)
  with pytest.raises(UserError, match="dkd: beta is nan"):
    kd.dkd(beta=float("nan"))
  with pytest.raises(UserError, match="dkd: temperature is 0"):
    kd.dkd(temperature=0)
  with pytest.raises(UserError, match="'dkd' needs labels"):
    kd.dkd()(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
