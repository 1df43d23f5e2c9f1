"""The k most likely classes and the rest against an oracle with loops, by hand, and its order with the whole sum."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import BATCH, CLASSES, logits
from tests.kd.on_logits import check, check_minus_infinity, kl, softmax


def oracle(k, temperature):
  def numbers(s, t, labels):
    out = []
    for p, q in zip(softmax(t, temperature), softmax(s, temperature), strict=True):
      best = sorted(range(len(p)), key=lambda c: -p[c])[:k]
      group = lambda x, best=best: np.append(x[best], sum(x[c] for c in range(len(x)) if c not in best))
      out.append(temperature**2 * kl(group(p), group(q)))
    return np.array(out)

  return numbers


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("k", "temperature"), [(1, 1.0), (2, 4.0), (4, 2.0), (CLASSES, 1.0), (100, 1.0)])
def test_value_and_gradient_are_the_oracles(k, temperature):
  check(kd.topk(k, temperature), oracle(k, temperature))


def test_by_hand():
  # p = (1/2, 1/4, 1/8, 1/8), q uniform, k = 2: 1/2 log 2 + 1/4 log 1 + 1/4 log(1/2).
  t = jnp.log(jnp.asarray([[4.0, 2.0, 1.0, 1.0]]))
  np.testing.assert_allclose(kd.topk(2, 1.0)(jnp.zeros((1, 4)), t)[0], [0.25 * np.log(2)], rtol=1e-6)


def test_never_negative_never_above_the_whole_and_growing_with_k():
  losses = [*(kd.topk(k, 1.0) for k in range(1, CLASSES + 1)), kd.hinton(1.0)]
  of_all = jax.jit(lambda s, t: [loss(s, t)[0] for loss in losses])
  with jax.enable_x64(True):
    for seed in range(20):
      *by_k, whole = map(np.asarray, of_all(logits(seed), logits(100 + seed)))
      assert all((low <= high + 1e-12).all() for low, high in itertools.pairwise([np.zeros(BATCH), *by_k]))
      np.testing.assert_allclose(by_k[-1], whole, rtol=1e-12)


def test_without_the_rest_it_would_be_negative():
  """The student gives the class more probability than the teacher: the sum over k = 1 class alone is below 0."""
  t, s = jnp.log(jnp.asarray([[2.0, 1.0, 1.0]])), jnp.log(jnp.asarray([[6.0, 1.0, 1.0]]))
  alone = 0.5 * np.log(0.5 / 0.75)
  np.testing.assert_allclose(kd.topk(1, 1.0)(s, t)[0], [alone + 0.5 * np.log(2)], rtol=1e-6)
  assert alone < 0


def test_a_small_rest_keeps_its_digits():
  # The rest is 2 exp(-30) in the teacher, 2 exp(-60) in the student: 1 - sum would be 0 in float32.
  t, s = jnp.asarray([[30.0, 0.0, 0.0]]), jnp.asarray([[60.0, 0.0, 0.0]])
  got = jax.jit(jax.grad(lambda t: kd.topk(1, 1.0)(t, s)[0].sum()))(t)  # the teacher as the student: q_label - p_label
  np.testing.assert_allclose(got[0, 1:], np.exp(-30), rtol=1e-3)


def test_a_class_excluded_by_minus_infinity():
  check_minus_infinity(kd.topk(2))
  check_minus_infinity(kd.topk(4))


def test_mistakes_are_one_sentence():
  with pytest.raises(UserError, match="topk: k is 0; expected a whole number, 1 or more"):
    kd.topk(0)
  with pytest.raises(UserError, match="topk: temperature is 0"):
    kd.topk(temperature=0)
