"""Criteria against float64 numpy, alone and while training."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsity
from leanax.core.errors import UserError
from tests.sparsity import nets


def oracle_largest(scores, keep):
  """The `keep` largest numbers, ties to the lower flat index."""
  flat = np.asarray(scores, np.float64).reshape(-1)
  mask = np.zeros(flat.size, bool)
  mask[np.lexsort((np.arange(flat.size), -flat))[:keep]] = True
  return mask.reshape(np.shape(scores))


def test_taylor_worked_case():
  """Removing w changes the loss by g w: -2, 2, 6 and 0; of the equal ones the first is kept."""
  w, g = {"kernel": jnp.array([[1.0, -2.0], [3.0, 5.0]])}, {"kernel": jnp.array([[-2.0, -1.0], [2.0, 0.0]])}
  tx = sparsity.prune(optax.sgd(0.0), sparsity.criteria.taylor(), density=0.5)
  _, state = tx.update(g, tx.init(w), w)
  np.testing.assert_array_equal(nets.masks(state)["kernel"], [[True, False], [True, False]])


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_taylor_against_numpy(decay):
  tx = sparsity.prune(
    optax.sgd(0.05), sparsity.criteria.taylor(decay), density=0.4, schedule=sparsity.cubic(0, 6, 2, initial=0.9)
  )
  before, average = nets.params(), 0.0
  kept = {0: 0.9, 2: 0.4 + 0.5 * (2 / 3) ** 3, 4: 0.4 + 0.5 / 27, 6: 0.4}
  for step, tree, state in nets.train(tx, before, 8):
    w, g = (np.asarray(t["Dense_0"]["kernel"], np.float64) for t in (before, nets.gradients(before, step)))
    average = decay * average + (1 - decay) * (w * g) ** 2
    if step in kept:
      want = oracle_largest(average, round(w.size * kept[step]))
    np.testing.assert_array_equal(nets.masks(state)["Dense_0"]["kernel"], want)
    nets.assert_bit_zero(want, tree["Dense_0"]["kernel"])
    before = tree
  assert (state.memory == ()) == (decay == 0)


def test_fisher_by_hand():
  """w^2 / 2 times g^2: 2, 8, 0 and 12.5 once the first gradient is all that is remembered."""
  w, g = {"kernel": jnp.array([[1.0, 2.0], [3.0, 5.0]])}, {"kernel": jnp.array([[2.0, -2.0], [0.0, 1.0]])}
  score = sparsity.criteria.fisher(0.0)
  memory = score.update(score.init(w["kernel"]), w["kernel"], g["kernel"])
  got = score.score(w["kernel"], None, memory, step=jnp.int32(0), key=jax.random.key(0))
  np.testing.assert_array_equal(got, [[2, 8], [0, 12.5]])
  got = sparsity.mask(w, score, density=0.5, gradients=g)
  np.testing.assert_array_equal(got["kernel"], [[0, 2], [0, 5]])


def test_fisher_against_numpy():
  """The weight is that of the mask's step and g^2 is averaged, unlike in Taylor's average of (g w)^2."""
  decay, at = 0.75, 5
  tx = sparsity.prune(optax.sgd(0.5), sparsity.criteria.fisher(decay), density=0.4, schedule=sparsity.one_shot(at))
  before, average = nets.params(), 0.0
  for step, tree, after in nets.train(tx, before, at + 1):
    w, g = (np.asarray(t["Dense_0"]["kernel"], np.float64) for t in (before, nets.gradients(before, step)))
    average = decay * average + (1 - decay) * g**2
    before, state = tree, after
  want = oracle_largest(w**2 * average / 2, round(w.size * 0.4))
  np.testing.assert_array_equal(nets.masks(state)["Dense_0"]["kernel"], want)
  with pytest.raises(UserError, match="fisher: decay is 1; expected a number from 0 to below 1"):
    sparsity.criteria.fisher(1)


def test_taylor_remembers_for_pruned_leaves_only():
  tx = sparsity.prune(optax.sgd(0.1), sparsity.criteria.taylor(0.5), density=0.5)
  memory = tx.init(nets.params()).memory
  assert memory["Dense_0"]["bias"] is None and memory["Dense_0"]["kernel"].shape == (17, 9)
  with pytest.raises(UserError, match="taylor: decay is 1; expected a number from 0 to below 1"):
    sparsity.criteria.taylor(1)


def test_taylor_in_half_precision():
  w = {"kernel": jnp.full((4, 4), 2.0**-10, jnp.bfloat16)}
  tx = sparsity.prune(optax.sgd(0.0), sparsity.criteria.taylor(0.5), density=0.5)
  state = tx.init(w)
  _, state = tx.update({"kernel": jnp.full((4, 4), 2.0**-12, jnp.bfloat16)}, state, w)
  assert state.memory["kernel"].dtype == jnp.float32 and float(state.memory["kernel"][0, 0]) == 2.0**-45


def test_of_nnx_variables_and_their_gradients():
  state = nnx.state(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), nnx.Param)
  w, g = np.asarray(state["kernel"][...], np.float64), np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
  gradients = jax.tree.map(lambda x: jnp.asarray(g) if x.ndim == 2 else x, state)
  for decay in (0.0, 0.5):
    tx = sparsity.prune(optax.sgd(0.0), sparsity.criteria.taylor(decay), density=0.5)
    _, after = jax.jit(lambda g, state, tx=tx: tx.update(g, tx.init(state), state))(gradients, state)
    np.testing.assert_array_equal(nets.masks(after)["kernel"], oracle_largest((w * g) ** 2, 16))


def masks_at(seed, steps=6, density=0.3):
  tx = sparsity.prune(
    optax.adam(0.1), sparsity.criteria.random(), density=density, schedule=sparsity.cubic(0, 4, 2), seed=seed
  )
  return [np.asarray(nets.masks(state)["Dense_0"]["kernel"]) for _, _, state in nets.train(tx, nets.params(), steps)]


def test_random_is_nested_and_a_function_of_the_seed():
  first, again, other = masks_at(0), masks_at(0), masks_at(1)
  for old, new in itertools.pairwise(first):
    assert np.all(old | ~new)  # what is pruned stays so
  np.testing.assert_array_equal(first, again)
  assert np.sum(first[-1]) == np.sum(other[-1]) == round(153 * 0.3)
  assert 0.5 < np.mean(first[-1] == other[-1]) < 0.66  # 0.3^2 + 0.7^2 by chance


def test_a_seed_of_the_update_is_one_of_the_optimizer_which_comes_first():
  tree = {"kernel": jnp.ones((20, 20))}

  def mask(own, given):
    tx = sparsity.prune(optax.sgd(0.1), sparsity.criteria.random(), density=0.5, seed=own)
    more = {} if given is None else {"seed": given}
    _, state = jax.jit(lambda tree, more: tx.update(tree, tx.init(tree), tree, **more))(tree, more)
    return np.asarray(nets.masks(state)["kernel"])

  np.testing.assert_array_equal(mask(None, 3), mask(3, None))
  np.testing.assert_array_equal(mask(0, 3), mask(None, None))
  assert np.any(mask(None, 3) != mask(None, 4))


def test_random_differs_by_leaf():
  tree = {name: {"kernel": jnp.ones((20, 20))} for name in "ab"}
  tx = sparsity.prune(optax.sgd(0.1), sparsity.criteria.random(), density=0.5)
  _, state = jax.jit(lambda tree: tx.update(tree, tx.init(tree), tree))(tree)
  masks = nets.masks(state)
  assert 0.4 < np.mean(np.asarray(masks["a"]["kernel"]) == np.asarray(masks["b"]["kernel"])) < 0.6


def test_signed_scores_keep_the_largest_and_not_the_farthest_from_zero():
  """Movement-like: -w g, of which the negative ones are pruned first."""
  score = sparsity.Score(lambda w, g, memory, *, step, key: -w * g)
  tree = nets.params()
  tx = sparsity.prune(optax.sgd(0.0), score, density=0.25)
  g = nets.gradients(tree, 0)
  _, state = jax.jit(lambda g, tree: tx.update(g, tx.init(tree), tree))(g, tree)
  w = tree["Dense_0"]["kernel"]
  want = oracle_largest(-np.asarray(w) * np.asarray(g["Dense_0"]["kernel"]), 38)
  np.testing.assert_array_equal(nets.masks(state)["Dense_0"]["kernel"], want)


def test_a_threshold_of_a_signed_score():
  score = sparsity.Score(lambda w, g, memory, *, step, key: w)
  w = {"kernel": jnp.array([[-3.0, 1.0], [2.0, -0.5]])}
  for level, want in ((1.0, [[0, 1], [1, 0]]), (9.0, [[0, 0], [1, 0]])):
    tx = sparsity.prune(optax.sgd(0.0), score, threshold=level)
    _, state = jax.jit(lambda w, tx=tx: tx.update(w, tx.init(w), w))(w)
    np.testing.assert_array_equal(nets.masks(state)["kernel"], np.asarray(want, bool))


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_magnitude_is_prune_by_magnitude(allocation):
  """With its sign taken away the score is ranked as the magnitude is, so both masks are the same."""
  size = sparsity.Score(lambda w, g, memory, *, step, key: jnp.abs(w))
  runs = [
    sparsity.magnitude(optax.adam(0.1), density=0.3, allocation=allocation),
    sparsity.prune(optax.adam(0.1), sparsity.criteria.magnitude(), density=0.3, allocation=allocation),
    sparsity.prune(optax.adam(0.1), size, density=0.3, allocation=allocation),
  ]
  (_, want, state), *others = [list(nets.train(tx, nets.params(), 3))[-1] for tx in runs]
  for _, tree, other in others:
    jax.tree.map(np.testing.assert_array_equal, (tree, other), (want, state))


@pytest.mark.parametrize(
  ("score", "sentence"),
  [
    ("magnitude", "score is 'magnitude'; expected a criterion, such as sparsity.criteria.magnitude()"),
    (sparsity.criteria.magnitude, "score is <function magnitude.*expected a criterion"),
  ],
)
def test_objects_that_are_not_criteria_are_refused(score, sentence):
  with pytest.raises(UserError, match=sentence):
    sparsity.prune(optax.sgd(0.1), score, density=0.5)


@pytest.mark.parametrize("wrong", [lambda w: jnp.sum(w), lambda w: jnp.sign(w).astype(jnp.int32), lambda w: w.T])
def test_scores_of_another_shape_are_refused(wrong):
  tree = nets.params()
  tx = sparsity.prune(optax.sgd(0.1), sparsity.Score(lambda w, g, memory, *, step, key: wrong(w)), density=0.5)
  with pytest.raises(UserError, match=r"the criterion scores 'Conv_0/kernel' with .*; expected floats of its shape"):
    tx.update(tree, tx.init(tree), tree)
