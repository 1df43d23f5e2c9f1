"""Movement against float64 numpy, alone and while training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsity
from tests.sparsity import nets


def largest(scores, keep):
  """The `keep` largest numbers, ties to the lower flat index."""
  flat = np.asarray(scores, np.float64).reshape(-1)
  mask = np.zeros(flat.size, bool)
  mask[np.lexsort((np.arange(flat.size), -flat))[:keep]] = True
  return mask.reshape(np.shape(scores))


def test_by_hand():
  """Scores -w g: 2, -2, -6 and 0.1. The largest weight, which shrinks, goes first."""
  w, g = {"kernel": jnp.array([[1.0, 2.0], [3.0, 0.1]])}, {"kernel": jnp.array([[-2.0, 1.0], [2.0, -1.0]])}
  tx = sparsity.prune(optax.sgd(0.0), sparsity.criteria.movement(), density=0.5)
  _, state = tx.update(g, tx.init(w), w)
  np.testing.assert_array_equal(nets.masks(state)["kernel"], [[True, False], [False, True]])
  np.testing.assert_allclose(state.memory["kernel"], [[2, -2], [-6, 0.1]], rtol=1e-6)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_scores_are_summed_over_all_steps(allocation):
  tx = sparsity.prune(
    optax.sgd(0.05), sparsity.criteria.movement(), None, allocation, sparsity.cubic(2, 6, 2, initial=0.9), density=0.4
  )
  before = nets.params()
  names, kept = ("Conv_0", "Dense_0"), {2: 0.9, 4: 0.4 + 0.5 / 8, 6: 0.4}
  total = {name: 0.0 for name in names}
  want = {name: np.ones(before[name]["kernel"].shape, bool) for name in names}
  for step, tree, state in nets.train(tx, before, 8):
    for name in names:
      w, g = (np.asarray(t[name]["kernel"], np.float64) for t in (before, nets.gradients(before, step)))
      total[name] = total[name] - w * g
    if step in kept:
      if allocation == "uniform":
        want = {name: largest(total[name], round(total[name].size * kept[step])) for name in names}
      else:
        flat = np.concatenate([total[name].reshape(-1) for name in names])
        parts = np.split(largest(flat, round(flat.size * kept[step])), [total["Conv_0"].size])
        want = {name: part.reshape(total[name].shape) for name, part in zip(names, parts, strict=True)}
    for name in names:
      np.testing.assert_array_equal(nets.masks(state)[name]["kernel"], want[name])
      nets.assert_bit_zero(want[name], tree[name]["kernel"])
    before = tree


def test_what_is_pruned_may_come_back_from_zero():
  """Its score rests, while the others fall below it."""
  w = {"kernel": jnp.array([[1.0, 1.0]])}
  tx = sparsity.prune(
    optax.sgd(0.1), sparsity.criteria.movement(), schedule=sparsity.Schedule((0, 1), (0.0, 0.0)), density=0.5
  )
  state = tx.init(w)
  for g, mask, after in (([-1.0, 0.0], [True, False], [1.1, 0.0]), ([9.0, -5.0], [False, True], [0.0, 0.5])):
    updates, state = tx.update({"kernel": jnp.array([g])}, state, w)
    w = optax.apply_updates(w, updates)
    np.testing.assert_array_equal(nets.masks(state)["kernel"], [mask])
    np.testing.assert_allclose(w["kernel"], [after], rtol=1e-6)


def test_in_half_precision_the_sum_is_float32():
  w = {"kernel": jnp.ones((4, 4), jnp.bfloat16)}
  tx = sparsity.prune(optax.sgd(0.0), sparsity.criteria.movement(), density=0.5, schedule=sparsity.one_shot(9))
  state, update = tx.init(w), jax.jit(tx.update)
  for _ in range(3):
    _, state = update({"kernel": jnp.full((4, 4), -(2.0**-9), jnp.bfloat16)}, state, w)
  assert state.memory["kernel"].dtype == jnp.float32
  np.testing.assert_array_equal(state.memory["kernel"], 3 * 2.0**-9)


def test_in_a_config_and_in_n_of_m():
  from leanax.pipeline import optimizers
  from tests.integration import jobs

  group = {"name": "prune", "score": {"name": "movement"}, "pattern": {"name": "n_m", "n": 1, "m": 2}}
  config = jobs.experiment(
    stages__pruned__sparsity=group, stages__pruned__optimizer={"name": "sgd", "learning_rate": 1e-10}
  )
  tx = optimizers.transformation("pruned", config.stages["pruned"], 6)
  tree = {"kernel": jnp.ones((4, 3))}
  g = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
  _, state = tx.update({"kernel": g}, tx.init(tree), tree, step=jnp.int32(0))
  pairs = -np.asarray(g).reshape(2, 2, 3)
  np.testing.assert_array_equal(
    np.asarray(nets.masks(state)["kernel"]).reshape(2, 2, 3), pairs == pairs.max(1, keepdims=True)
  )
