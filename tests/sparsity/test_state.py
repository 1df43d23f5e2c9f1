"""Reading masks and counts, and finding slots."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsity
from leanax.core.errors import UserError
from tests.sparsity import nets


def test_summary_and_masks():
  params = {"params": {"a": {"kernel": jnp.array([[1.0, 0.0], [2.0, 3.0]]), "bias": jnp.zeros(2)}}}
  masks = {"params": {"a": {"kernel": jnp.array([[True, True], [True, False]]), "bias": None}}}
  assert sparsity.summary(params, masks) == {"a/bias": (2, 2, 0), "a/kernel": (4, 3, 3)}
  assert sparsity.summary(params, None)["a/kernel"].kept == 4
  masked = sparsity.apply_masks(masks, params)["params"]["a"]
  np.testing.assert_array_equal(masked["kernel"], [[1, 0], [2, 0]])
  assert sparsity.apply_masks(None, params)["params"]["a"]["bias"] is params["params"]["a"]["bias"]


def test_masks_of_another_tree():
  with pytest.raises(UserError, match="there is a mask of 'a/kernel', which is no leaf of the tree"):
    sparsity.summary({"b": {"kernel": jnp.ones((2, 2))}}, {"a": {"kernel": jnp.ones((2, 2), bool)}})


def test_masks_are_found_anywhere():
  tree = nets.params()
  tx = sparsity.magnitude(optax.adam(0.1), density=0.5)
  for outer in (optax.MultiSteps(tx, 2), optax.apply_if_finite(tx, 1), optax.chain(tx)):
    assert sparsity.masks(outer.init(tree))["Dense_0"]["kernel"].shape == (17, 9)
  assert sparsity.masks(optax.adam(0.1).init(tree)) is None
  with pytest.raises(UserError, match="2 sparse methods side by side"):
    sparsity.masks(optax.chain(tx, tx).init(tree))


def test_slots_by_place_and_shape():
  params = {"b": {"a": {"k": jnp.ones((2, 3))}}, "a": {"k": jnp.ones((2, 3))}}
  state = {"mu": params, "row": {"a": {"k": jnp.ones(2)}}, "count": jnp.ones(())}
  seen = sparsity.map_slots(lambda i, slot: slot * (10 + i), params, state)
  assert float(seen["mu"]["a"]["k"][0, 0]) == 10 and float(seen["mu"]["b"]["a"]["k"][0, 0]) == 11
  assert float(seen["row"]["a"]["k"][0]) == 1 and float(seen["count"]) == 1


def test_slots_of_one_bare_array():
  w = jnp.ones((4, 2))
  state = optax.adam(0.1).init(w)
  doubled = sparsity.map_slots(lambda _, slot: slot + 2, w, state)
  np.testing.assert_array_equal(doubled[0].mu, jnp.full((4, 2), 2.0))
  assert doubled[0].count == 0


def test_every_method_is_exported():
  from leanax.core.methods import methods

  assert set(methods(sparsity)) == {"magnitude", "hold", "prune", "mask", "dynamic"}
  assert {"set", "rigl"} <= set(methods(sparsity, "dynamic"))
  assert set(methods(sparsity.schedules)) == {"alternating", "cubic", "cyclic", "linear", "one_shot", "periodic"}
  assert all(getattr(sparsity, name, None) is not None for name in sparsity.__all__)
  assert jax.tree.leaves(sparsity.__doc__)
