"""Multi-level logit distillation against the paper's equations with loops, by hand, and at its limits."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import kd
from leanax.core.errors import UserError
from tests.kd.nets import batch, check_logits, logits


def oracle(s, t, temperatures=(2.0, 3.0, 4.0, 5.0, 6.0), instance=1.0, batch_gram=1.0, class_gram=1.0):
  total = np.zeros(len(s))
  for temperature in temperatures:
    q, p = (scipy.special.softmax(x / temperature, -1) for x in (s, t))
    total += instance * temperature**2 * scipy.special.rel_entr(p, q).sum(-1)
    for i in range(len(s)):
      total[i] += batch_gram * sum((p[i] @ p[j] - q[i] @ q[j]) ** 2 for j in range(len(s)))
    classes = range(s.shape[1])
    gram = sum((p[:, c] @ p[:, d] - q[:, c] @ q[:, d]) ** 2 for c in classes for d in classes)
    total += class_gram * gram / len(classes)
  return total


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
  "settings",
  [{}, {"temperatures": (1.0,)}, {"instance": 0.0, "batch_gram": 0.0}, {"temperatures": (2.0, 8.0), "class_gram": 0.5}],
)
def test_value_and_gradient_are_the_papers(settings):
  check_logits(kd.mlkd(**settings), lambda s, t: oracle(s, t, **settings), logits(0), logits(1))


def test_instances_alone_are_hintons_losses():
  s, t = jnp.float32(logits(0)), jnp.float32(logits(1))
  want = sum(kd.hinton(temperature)(s, t)[0] for temperature in (2.0, 3.0, 4.0, 5.0, 6.0))
  np.testing.assert_allclose(kd.mlkd(batch_gram=0.0, class_gram=0.0)(s, t)[0], want, rtol=1e-6)


def test_by_hand():
  # Certain of one class each: q q' = ones, p p' = identity, q' q = diag(2, 0), p' p = identity.
  s, t = jnp.array([[1e4, 0.0], [1e4, 0.0]]), jnp.array([[1e4, 0.0], [0.0, 1e4]])
  loss = kd.mlkd(temperatures=(1.0,), instance=0.0)
  np.testing.assert_allclose(loss(s, t)[0], [1 + 2 / 2, 1 + 2 / 2], rtol=1e-6)


def test_masked_examples_and_classes_are_ignored():
  s, t = logits(0), logits(1)
  valid, classes = np.array([1, 1, 0, 1, 1, 0], bool), np.array([1, 0, 1, 1, 1], bool)
  data = batch(valid=jnp.asarray(valid))
  got = kd.mlkd()(jnp.float32(s), jnp.float32(t), data, class_mask=jnp.asarray(classes))[0]
  np.testing.assert_allclose(np.asarray(got)[valid], oracle(s[valid][:, classes], t[valid][:, classes]), rtol=1e-5)


def test_mistakes_are_named():
  with pytest.raises(UserError, match=r"mlkd: temperatures is \(\); expected a sequence of one or more"):
    kd.mlkd(temperatures=())
  with pytest.raises(UserError, match=r"mlkd: temperatures\[1\] is -1; expected a number from 0.001 to 10000"):
    kd.mlkd(temperatures=(4.0, -1))
