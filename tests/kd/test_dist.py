"""DIST against scipy's correlations, by hand, and at its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import kd
from leanax.core.errors import UserError
from tests.kd.nets import batch, check_logits, logits, value_and_gradient


def oracle(s, t, beta=1.0, gamma=1.0, tau=1.0, squared=True):
  q, p = (scipy.special.softmax(x / tau, -1) for x in (s, t))
  inter = np.array([1 - scipy.stats.pearsonr(a, b).statistic for a, b in zip(q, p, strict=True)])
  intra = 1 - np.mean([scipy.stats.pearsonr(a, b).statistic for a, b in zip(q.T, p.T, strict=True)])
  return (tau**2 if squared else 1) * (beta * inter + gamma * intra)


def value(loss, s, t, data=None, class_mask=None):
  """The numbers of a loss in float32, of one program."""
  run = jax.jit(lambda s, t, data, class_mask: loss(s, t, data, class_mask=class_mask)[0])
  return run(np.float32(s), np.float32(t), data or {}, class_mask)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
  "settings", [{}, {"tau": 4.0}, {"beta": 0.5, "gamma": 2.0, "tau": 3.0, "squared": False}, {"beta": 0.0}]
)
def test_value_and_gradient_are_the_papers(settings):
  check_logits(kd.dist(**settings), lambda s, t: oracle(s, t, **settings), logits(0), logits(1))


def test_by_hand():
  # Two classes: rows correlate by 1 or -1, and columns of two examples too. Example 0 agrees, example 1 does not;
  # each class is likelier for example 0 in the teacher and equally likely for both in the student: correlation 0.
  s, t = jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
  np.testing.assert_allclose(value(kd.dist(), s, t), [0 + 1, 2 + 1], rtol=1e-6)


def test_any_increasing_line_of_the_probabilities_is_a_match():
  """The relation ignores scale and offset, so a student whose probabilities are mixed with uniform ones is right."""
  p = scipy.special.softmax(logits(3), -1)
  mixed = 0.3 * p + 0.7 / p.shape[1]
  np.testing.assert_allclose(value(kd.dist(), np.log(mixed), np.log(p)), 0.0, atol=1e-5)


def test_a_rare_class_counts_as_much_as_another():
  s, t = logits(0), logits(1)
  s[:, 0] -= 30
  t[:, 0] -= 30
  got = value(kd.dist(beta=0.0), s, t)
  np.testing.assert_allclose(got, oracle(s, t, beta=0.0), rtol=1e-4)


def test_masked_examples_and_classes_are_ignored():
  s, t = logits(0), logits(1)
  valid, classes = np.array([1, 1, 0, 1, 1, 0], bool), np.array([1, 0, 1, 1, 1], bool)
  data = batch(valid=jnp.asarray(valid))
  got = value(kd.dist(tau=2.0), s, t, data, classes)
  want = oracle(s[valid][:, classes], t[valid][:, classes], tau=2.0)
  np.testing.assert_allclose(np.asarray(got)[valid], want, rtol=1e-5)


def test_an_example_without_classes_has_no_loss_of_its_own():
  class_mask = np.repeat(np.arange(6) != 2, 5).reshape(6, 5)
  got = value(kd.dist(gamma=0.0), logits(0), logits(1), class_mask=class_mask)
  want = oracle(logits(0), logits(1), gamma=0.0)
  np.testing.assert_allclose(got, np.where(np.arange(6) == 2, 0.0, want), rtol=1e-5)


def test_each_term_of_constant_logits_is_one_and_the_gradient_finite():
  flat, t = np.zeros((6, 5), np.float32), np.float32(logits(1))
  found, gradient = value_and_gradient(lambda s: kd.dist()(s, t)[0], flat)
  np.testing.assert_allclose(found, 2.0, rtol=1e-6)
  assert np.all(np.isfinite(gradient))


def test_mistakes_are_named():
  for shape in ((1, 5), (0, 5), (1, 1, 5)):
    with pytest.raises(UserError, match="'dist' compares examples of a batch and got [01]; expected 2 or more"):
      kd.dist()(jnp.zeros(shape), jnp.zeros(shape))
  with pytest.raises(UserError, match="dist: tau is 0; expected a number from 0.001 to 10000"):
    kd.dist(tau=0)
