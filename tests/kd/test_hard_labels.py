"""Cross-entropy with labels, and its class weights, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError

LOGITS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
LABELS, OTHERS = np.array([0, 2, 1, 1, 0]), np.array([1, 1, 2, 0, 0])
MIX = np.array([1.0, 0.25, 0.5, 0.0, 0.7], np.float32)
WEIGHTS = (0.5, 2.0, 0.0)


def entropies():
  x = LOGITS.astype(np.float64)
  return -(x - np.log(np.exp(x).sum(1, keepdims=True)))


def test_each_label_has_its_weight():
  loss = kd.hard_labels(class_weights=WEIGHTS)
  found = loss(jnp.asarray(LOGITS), None, {"label": jnp.asarray(LABELS)}).per_example
  np.testing.assert_allclose(found, np.array(WEIGHTS)[LABELS] * entropies()[np.arange(5), LABELS], rtol=1e-5)


def test_mixed_examples_have_the_weights_of_both_labels():
  batch = {"label": jnp.asarray(LABELS), "mix_label": jnp.asarray(OTHERS), "mix": jnp.asarray(MIX)}
  one, other = (np.array(WEIGHTS)[k] * entropies()[np.arange(5), k] for k in (LABELS, OTHERS))
  found = kd.hard_labels(class_weights=WEIGHTS)(jnp.asarray(LOGITS), None, batch).per_example
  np.testing.assert_allclose(found, MIX * one + (1 - MIX) * other, rtol=1e-5)


@pytest.mark.parametrize(
  ("weights", "sentence"),
  [
    ("balanced", "hard_labels: class_weights is 'balanced'; expected a number for each class"),
    (2.0, "hard_labels: class_weights is 2.0; expected a number for each class"),
    ((1.0, -1.0, 1.0), r"hard_labels: class_weights\[1\] is -1.0; expected a number, 0 or more"),
    ((1.0, 1.0), "hard_labels: class_weights has 2 numbers; expected 3, one for each class"),
  ],
)
def test_weights_that_are_none(weights, sentence):
  with pytest.raises(UserError, match=sentence):
    kd.hard_labels(class_weights=weights)(jnp.asarray(LOGITS), None, {"label": jnp.asarray(LABELS)})
