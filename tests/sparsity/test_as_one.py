"""Layers that are ranked as one by normalised scores, against float64 numpy."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsity
from sparsity import allocations
from tests.sparsity import nets

NAMES = ("Conv_0", "Dense_0")


def oracle_lamp(row):
  """Equation 5 of the paper, entry by entry; among equals the later one counts as smaller."""
  w = np.asarray(row, np.float64).reshape(-1)
  larger = [[b**2 for j, b in enumerate(w) if (abs(b), -j) >= (abs(a), -i)] for i, a in enumerate(w)]
  return np.array([a**2 / sum(one) for a, one in zip(w, larger, strict=True)]).reshape(np.shape(row))


def oracle_norm(row):
  return np.abs(np.asarray(row, np.float64)) / np.linalg.norm(np.asarray(row, np.float64))


ORACLES = {"lamp": oracle_lamp, "global_normalised": oracle_norm}


def oracle_masks(tree, oracle, density):
  scores = [oracle(tree[name]["kernel"]) for name in NAMES]
  flat = np.concatenate([one.reshape(-1) for one in scores])
  mask = np.zeros(flat.size, bool)
  mask[np.lexsort((np.arange(flat.size), -flat))[: round(flat.size * density)]] = True
  parts = np.split(mask, [scores[0].size])
  return {name: part.reshape(one.shape) for name, part, one in zip(NAMES, parts, scores, strict=True)}


def test_lamp_by_hand():
  """Squares 9, 4 and 1: 9 / 9, 4 / 13, 1 / 14; of the equal ones 1 / 1 and 1 / 2."""
  got = allocations.lamp(jnp.array([[2.0, 3.0, 1.0], [1.0, 1.0, 0.0]]))
  np.testing.assert_allclose(got, [[4 / 13, 1, 1 / 14], [1, 0.5, 0]], rtol=1e-6)


def test_scores_below_zero_stay_below():
  got = allocations.lamp(jnp.array([[-4.0, 1.0, -2.0, 2.0]]))
  np.testing.assert_allclose(got, [[-1, 1 / 5, -0.5, 1]], rtol=1e-6)


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("density", [0.07, 0.4])
def test_masks_against_numpy(name, density):
  """A layer a thousand times smaller keeps as much as before; by plain "global" it would lose all."""
  tree = nets.params()
  tree["Conv_0"]["kernel"] = tree["Conv_0"]["kernel"] / 1024
  tree["Dense_0"]["kernel"] = tree["Dense_0"]["kernel"] + 0.1 * jnp.arange(9.0)  # no ties across layers
  want = oracle_masks(tree, ORACLES[name], density)
  for allocation in (name, getattr(allocations, name)):
    got = sparsity.mask(tree, density=density, allocation=allocation)
    for layer in NAMES:
      np.testing.assert_array_equal(got[layer]["kernel"], np.where(want[layer], tree[layer]["kernel"], 0))
  assert want["Conv_0"].any()
  if density == 0.07:
    plain = sparsity.mask(tree, density=density, allocation="global")
    assert not np.any(plain["Conv_0"]["kernel"])


def test_while_training_and_of_a_stack():
  """Layers of one leaf are normalised by themselves, and in training the masks are those at once."""
  w = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4)), jnp.float32)}
  w = {"kernel": w["kernel"] * jnp.array([1.0, 1 / 512]).reshape(2, 1, 1)}
  scores = np.stack([oracle_lamp(layer) for layer in w["kernel"]]).reshape(-1)
  want = np.zeros(40, bool)
  want[np.argsort(-scores, kind="stable")[:12]] = True
  tx = sparsity.magnitude(optax.sgd(0.0), density=0.3, allocation="lamp", stacked=["kernel"])
  ((_, _, state),) = nets.train(tx, w, 1)
  np.testing.assert_array_equal(nets.masks(state)["kernel"], want.reshape(2, 5, 4))
  assert want[20:].sum() > 2
