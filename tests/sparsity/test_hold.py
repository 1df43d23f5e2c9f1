"""Zeros that were there stay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsity
from leanax.core.errors import UserError
from tests.sparsity import nets


def test_zeros_stay_and_the_rest_trains():
  start = nets.params()
  *_, (_, pruned, _) = nets.train(sparsity.magnitude(optax.adam(0.1), density=0.3), start, 1)
  for _, tree, state in nets.train(sparsity.hold(optax.adamw(0.1)), pruned, 4):
    mask = sparsity.masks(state)["Dense_0"]["kernel"]
    np.testing.assert_array_equal(mask, np.asarray(pruned["Dense_0"]["kernel"]) != 0)
    nets.assert_bit_zero(mask, tree["Dense_0"]["kernel"])
    assert sparsity.masks(state)["Conv_0"]["bias"] is None
    assert np.all(np.asarray(tree["Conv_0"]["bias"]) != np.asarray(pruned["Conv_0"]["bias"]))
  moved = np.asarray(tree["Dense_0"]["kernel"]) != np.asarray(pruned["Dense_0"]["kernel"])
  np.testing.assert_array_equal(moved, mask)
  assert not np.any(np.asarray(state.inner[0].mu["Dense_0"]["kernel"])[~np.asarray(mask)])


def test_worked_case_needs_no_step():
  w = {"kernel": jnp.array([1.0, 0.0, -0.0, 2.0])}
  tx = sparsity.hold(optax.sgd(1.0))
  updates, _ = tx.update({"kernel": jnp.ones(4)}, tx.init(w), w)
  np.testing.assert_array_equal(updates["kernel"], [-1, 0, 0, -1])


def test_rules_choose():
  tree = jax.tree.map(jnp.zeros_like, nets.params())
  *_, (_, out, state) = nets.train(sparsity.hold(optax.sgd(0.1), rules=[("Dense_0/*", True)]), tree, 1)
  assert not np.any(np.asarray(out["Dense_0"]["bias"])) and np.all(np.asarray(out["Conv_0"]["kernel"]) != 0)
  assert sparsity.masks(state)["Conv_0"]["kernel"] is None


def test_values_that_are_not_numbers():
  tree = {"kernel": jnp.ones((2, 2))}
  for call, sentence in (
    (lambda: sparsity.hold(optax.sgd(0.1), pack_axis="x"), "pack_axis is 'x'; expected a whole number"),
    (lambda: sparsity.topk_mask(tree, 2.5), "the count of a threshold is 2.5; expected a whole number, 0 or more"),
    (lambda: sparsity.kth_magnitude(tree, "3"), "the count of a threshold is '3'; expected a whole number, 1 or more"),
    (lambda: sparsity.check(sparsity.hold(optax.sgd(0.1)), tree, updates=0), "updates is 0; expected a whole number"),
  ):
    with pytest.raises(UserError, match=sentence):
      call()
